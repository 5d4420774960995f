"""The toy network in arbitrary precision: gradients that float64 cannot hold.

Needs mpmath: `pip install "sigscale[theory]"`. Functions are evaluated by the mpmath callables of their
registry entries, so the results share only the chain rule with the package's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .._checks import check_integer
from ..kernels.functions import FUNCTIONS
from ._network import Activation, chain

GUARD = 64  # bits beyond what is asked for


def network(theta: Sequence[Any], x: Any, alpha: Any = 1, function: str = "tanh", **options: Any) -> Any:
    """g(x) = f_alpha[theta^l f_alpha[theta^(l-1) ... f_alpha[theta^1 x]]] to 50 digits, or `digits=`.

    Arguments, also `naive=`, are those of `sigscale.theory.network`: numbers that mpmath takes, and theta a
    sequence of them or a one-dimensional tensor.

    Returns: an `mpmath.mpf`. Without mpmath, an ImportError is raised.
    Source: Sections 2.1 and 2.3, eq. (1), of arXiv 2106.02260.

    Example:
        >>> mpmath.nstr(theory.exact.network([1.5], 1, digits=30), 30)
        '0.905148253644866438242303696457'
    """
    return _run(theta, x, alpha, function, **options)[1]


def gradient(
    theta: Sequence[Any],
    x: Any,
    alpha: Any = 1,
    function: str = "tanh",
    *,
    d: Any = -1,
    r: Any = 0,
    naive: bool = False,
    digits: int = 50,
) -> list[Any]:
    """All partial derivatives of the loss, as in `sigscale.theory.gradient`, to `digits` decimal digits.

    Where the penalty's part r theta^k and the network's nearly cancel, digits count from the larger one.

    Returns: l numbers of type `mpmath.mpf`.
    Source: Sections 2.1, 2.2 and 2.3 of arXiv 2106.02260.

    Example:
        >>> theory.gradient([10.0] * 50, 1.5)[0].item()  # below the smallest float64
        0.0
        >>> mpmath.nstr(theory.exact.gradient([10.0] * 50, 1.5)[0], 10)
        '4.381933013e-360'
    """
    weights, _, partials = _run(theta, x, alpha, function, naive, digits)
    slope, penalty = _number(d, "d"), _number(r, "r")
    if penalty < 0:
        raise ValueError(f"r must be at least 0; got {r!r}: 0 is no penalty")
    with _mpmath().workdps(digits):
        return [penalty * weight - slope * part for weight, part in zip(weights, partials, strict=True)]


def _run(
    theta: Any, x: Any, alpha: Any, function: str, naive: bool = False, digits: int = 50
) -> tuple[list[Any], Any, list[Any]]:
    """The parameters, g(x) and its partial derivatives."""
    mp = _mpmath()
    listed = theta.tolist() if isinstance(theta, Tensor) else theta
    if not isinstance(listed, Iterable):
        raise TypeError(f"theta must be a sequence of numbers; got {listed!r}: pass [1.5] for one layer")
    weights = [_number(each, "theta") for each in listed]
    start, scale = _number(x, "x"), _number(alpha, "alpha")
    if not weights:
        raise ValueError("theta must have a parameter for each layer; got none: pass [1.5] for one layer")
    if scale <= 0:
        raise ValueError(f"alpha must be finite and > 0; got {alpha!r}: pass a number such as 2.0")
    f = Activation(FUNCTIONS[function].mp_value, FUNCTIONS[function].mp_slope)
    # An error of the argument z of f' costs as many bits as z has in front of the point.
    size = max(mp.mag(each) for each in (*weights, start, scale) if each)
    with mp.workdps(check_integer(digits, "digits", "50 is the default")):
        with mp.workprec(mp.mp.prec + GUARD + max(0, 2 * size)):
            output, partials = chain(weights, start, f, scale, naive=naive)
        return weights, +output, [+part for part in partials]


def _number(given: Any, name: str) -> Any:
    """A finite mpf, exactly the number given."""
    mp = _mpmath()
    try:
        number = mp.mpf(given.item() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be made of real numbers; got {given!r}: pass a float") from error
    if not mp.isfinite(number):
        raise ValueError(f"{name} must be finite; got {given!r}: leave infinities and NaN out")
    return number


def _mpmath() -> Any:
    try:
        import mpmath
    except ImportError as error:
        remedy = 'pip install "sigscale[theory]"'
        raise ImportError(f"arbitrary precision needs mpmath, not found: {remedy}") from error
    return mpmath
