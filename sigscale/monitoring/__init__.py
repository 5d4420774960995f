"""The parts of `sigscale.GradientMonitor`."""
