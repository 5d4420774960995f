"""sigscale: fused alpha-scaled sigmoid-type activations for PyTorch."""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

try:
    from . import functional, init, nn, plot, theory
except ModuleNotFoundError as error:
    if error.name != "sigscale.kernels":
        raise
    raise ImportError(
        "sigscale runs from an installation, also in its own checkout: pip install -e ."
    ) from error

from ._attachment import Attachment
from ._conversion import ConversionEntry, ConversionReport
from .convert import scale_activations, unscale_activations
from .fold import fold
from .functional import ActivationFunction, arctan, sigmoid, softsign, tanh
from .kernels.functions import FUNCTIONS
from .monitor import GradientHistory, GradientMonitor
from .penalty import WeightPenalty
from .quantile import foreach_quantile, nanquantile, quantile
from .sketch import Histogram, QuantileSketch

__version__ = _version("sigscale")
__all__ = [
    "FUNCTIONS",
    "ActivationFunction",
    "Attachment",
    "ConversionEntry",
    "ConversionReport",
    "GradientHistory",
    "GradientMonitor",
    "Histogram",
    "QuantileSketch",
    "WeightPenalty",
    "__version__",
    "arctan",
    "fold",
    "foreach_quantile",
    "functional",
    "init",
    "nanquantile",
    "nn",
    "plot",
    "quantile",
    "scale_activations",
    "sigmoid",
    "softsign",
    "tanh",
    "theory",
    "unscale_activations",
]

if not TYPE_CHECKING:  # a type checker knows the names above; other functions may be registered

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

    __all__ += [name for name in FUNCTIONS if name not in __all__]
