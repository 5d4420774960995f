"""The paper's CIFAR-10 experiment: `python -m examples.cifar10 --help`, from the repository root."""
