"""Runnable examples; start them from the repository root, e.g. `python -m examples.cifar10 --quick`."""
