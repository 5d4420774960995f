"""Device code of sigscale: activations, the kernels that run them, and their plain-PyTorch twins."""

from typing import Any

if __name__ != "sigscale.kernels":
    # Python was started in the checkout's root, where this folder goes by the name of Hugging Face's package.
    # Libraries that probe for that find it behind this folder or, here, a package that is not it.
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    ROOT = Path(__file__).resolve().parent.parent
    spec = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry).resolve() != ROOT])
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[__name__])
    __path__ = []

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):  # such as __version__, by which libraries tell
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise ImportError(
            f"this folder is the package sigscale.kernels, not {__name__!r}: run `pip install -e .` "
            "in the checkout and `import sigscale`"
        )
