"""sigscale: fused alpha-scaled sigmoid-type activations for PyTorch."""

from __future__ import annotations

from importlib.metadata import version as _version

try:
    from . import functional, init, nn, plot, theory
except ModuleNotFoundError as error:
    if error.name != "sigscale.kernels":
        raise
    raise ImportError(
        "sigscale runs from an installation, also in its own checkout: pip install -e ."
    ) from error

from .convert import scale_activations, unscale_activations
from .fold import fold
from .functional import ActivationFunction
from .kernels.functions import FUNCTIONS
from .monitor.history import GradientHistory
from .monitor.monitor import GradientMonitor
from .penalty import WeightPenalty
from .quantile import foreach_quantile, nanquantile, quantile
from .sketch import QuantileSketch

__version__ = _version("sigscale")
__all__ = [
    "FUNCTIONS",
    "GradientHistory",
    "GradientMonitor",
    "QuantileSketch",
    "WeightPenalty",
    "__version__",
    "fold",
    "foreach_quantile",
    "functional",
    "init",
    "nanquantile",
    "nn",
    "plot",
    "quantile",
    "scale_activations",
    "theory",
    "unscale_activations",
    *FUNCTIONS,
]


def __getattr__(name: str) -> ActivationFunction:
    if name in FUNCTIONS:
        return functional.functional(FUNCTIONS[name])
    for function in FUNCTIONS.values():
        if name == function.paper_name:
            raise AttributeError(
                f"module 'sigscale' has no attribute {name!r}: it is sigscale.{function.name}"
            )
    raise AttributeError(f"module 'sigscale' has no attribute {name!r}: it has {', '.join(FUNCTIONS)}")


def __dir__() -> list[str]:
    return sorted({*__all__, *FUNCTIONS})


globals().update({name: getattr(functional, name) for name in FUNCTIONS})
