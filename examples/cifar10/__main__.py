import sys

try:
    import matplotlib  # noqa: F401  (needed only at the end of a long run)

    from examples.cifar10.cli import main
except ModuleNotFoundError as error:
    sys.exit(f'error: the example needs {error.name}, which is not installed: pip install -e ".[examples]"')

sys.exit(main())
