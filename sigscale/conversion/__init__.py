"""The parts of `sigscale.scale_activations` and `sigscale.unscale_activations`."""
