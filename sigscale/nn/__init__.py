"""The alpha-scaled activations as modules: `sigscale.nn.Tanh`, `Sigmoid`, `Arctan`, `Softsign`.

Made from the registry in `sigscale.kernels.functions`: a function registered there appears here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kernels.functions import FUNCTIONS
from .activation import Activation as Activation
from .activation import class_name as class_name
from .activation import module as module
from .recurrent import GRU as GRU
from .recurrent import LSTM as LSTM
from .recurrent import RNN as RNN

if TYPE_CHECKING:

    class Tanh(Activation): ...

    class Sigmoid(Activation): ...

    class Arctan(Activation): ...

    class Softsign(Activation): ...

else:  # these and all others that are registered

    def __getattr__(name: str) -> type[Activation]:
        for function in FUNCTIONS.values():
            if class_name(function.name) == name:
                return module(function)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *map(class_name, FUNCTIONS)})
