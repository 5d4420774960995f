"""The parts of `sigscale.fold`."""
