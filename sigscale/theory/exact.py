"""The toy network in arbitrary precision: gradients that float64 cannot hold.

Needs mpmath: `pip install "sigscale[theory]"`. A function is evaluated by the formula of its registry entry,
so that the results share nothing with the package's own arithmetic but the chain rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ..kernels.functions import FUNCTIONS
from ..kernels.registry import Function
from ._checks import checked_count
from ._network import Activation, chain

GUARD = 64  # bits beyond what is asked for
LONGEST = 1 << 18  # bits; a derivative below a quarter of them may be given up


def network(
    theta: Sequence[Any],
    x: Any,
    alpha: Any = 1,
    function: str = "tanh",
    *,
    naive: bool = False,
    digits: int = 50,
) -> Any:
    """g(x) = f_alpha[theta^l f_alpha[theta^(l-1) ... f_alpha[theta^1 x]]] to this many decimal digits.

    Args:
        theta: the l parameters, theta^1 first: numbers that mpmath takes, or a one-dimensional tensor.
        x, alpha: numbers that mpmath takes; alpha > 0.
        function, naive: as in `sigscale.theory.network`.
        digits: how many are correct.

    Returns:
        An `mpmath.mpf`.

    Raises:
        ImportError: mpmath is missing.
        TypeError, ValueError: an argument is not a real number, or out of its range.
        ArithmeticError: f' is below 2^-65,536 somewhere, as that of tanh is from 22,700 on.

    Source: Sections 2.1 and 2.3, eq. (1), of arXiv 2106.02260.

    Example:
        >>> import mpmath
        >>> from sigscale import theory
        >>> mpmath.nstr(theory.exact.network([1.5], 1, digits=30), 30)
        '0.905148253644866438242303696457'
    """
    return _run(theta, x, alpha, function, naive, digits)[1]


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
    """All partial derivatives of the loss, the formula of `sigscale.theory.gradient`, to so many digits.

    Where the penalty's part r theta^k and the network's nearly cancel, the digits count from the larger one.

    Args:
        theta, x, alpha, function, naive, digits: as in `network`.
        d, r: as in `sigscale.theory.gradient`; numbers that mpmath takes.

    Returns:
        l numbers of type `mpmath.mpf`.

    Raises:
        ImportError, TypeError, ValueError, ArithmeticError: as in `network`.

    Source: the formulas of Sections 2.1, 2.2 and 2.3 of arXiv 2106.02260.

    Example:
        >>> import mpmath
        >>> from sigscale import theory
        >>> theory.gradient([10.0] * 50, 1.5)[0].item()  # below the smallest float64
        0.0
        >>> mpmath.nstr(theory.exact.gradient([10.0] * 50, 1.5)[0], 10)
        '4.381933013e-360'
    """
    mp = _mpmath()
    weights, _, partials = _run(theta, x, alpha, function, naive, digits)
    slope, penalty = (_number(given, name) for given, name in ((d, "d"), (r, "r")))
    if penalty < 0:
        raise ValueError(f"r must be at least 0; got {r!r}: 0 is no penalty")
    with mp.workdps(digits):
        return [penalty * weight - slope * part for weight, part in zip(weights, partials, strict=True)]


def _run(
    theta: Any, x: Any, alpha: Any, function: str, naive: bool, digits: int
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
    # An error of the argument z of f' costs as many bits as z has in front of the point.
    size = max(mp.mag(each) for each in (*weights, start, scale) if each)
    with mp.workdps(checked_count(digits, "digits")), mp.workprec(mp.mp.prec + GUARD + max(0, 2 * size)):
        value = _formula(FUNCTIONS[function], mp)
        activation = Activation(value, lambda u: _slope(value, u, mp)).scaled(scale, naive=naive)
        output, partials = chain(weights, start, activation)
    with mp.workdps(digits):
        return weights, +output, [+part for part in partials]


def _slope(value: Callable[[Any], Any], u: Any, mp: Any) -> Any:
    """f'(u) > 0 as a difference quotient, at more and more bits until it no longer changes."""
    goal = mp.mp.prec
    previous, bits = None, goal
    while bits < LONGEST:
        with mp.workprec(bits):
            slope = mp.diff(value, u)
        if previous and abs(slope - previous) <= mp.ldexp(slope, 1 - goal):
            return +slope
        previous, bits = slope, 2 * bits
    raise ArithmeticError(f"the derivative at {mp.nstr(u, 5)} is too small: below 2^-{LONGEST // 4:,}")


def _formula(function: Function, mp: Any) -> Callable[[Any], Any]:
    """The formula of the registry, such as "u / (1 + |u|)", as a function of an mpf."""
    text = re.sub(r"\|([^|]+)\|", r"abs(\1)", function.formula).replace("^", "**")
    text = re.sub(r"\b\d+(\.\d+)?", r"mpf('\g<0>')", text)
    try:
        code = compile(text, f"<formula of {function.name}>", "eval")
        names = {name: getattr(mp, name.replace("arc", "a")) for name in {*code.co_names} - {"u", "abs"}}
    except (SyntaxError, AttributeError) as error:
        raise ValueError(
            f"cannot evaluate the formula {function.formula!r} of {function.name}: write it in u with "
            "numbers, + - * / ^ ( ) | | and functions of mpmath"
        ) from error
    return lambda u: eval(code, {"__builtins__": {"abs": abs}}, {**names, "u": u})


def _number(given: Any, name: str) -> Any:
    """A finite mpf, exactly what was given."""
    mp = _mpmath()
    try:
        number = mp.mpf(given.item() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be made of real numbers; got {given!r}: pass a float or an mpf"
        ) from error
    if not mp.isfinite(number):
        raise ValueError(f"{name} must be finite; got {given!r}: leave infinities and NaN out")
    return number


def _mpmath() -> Any:
    try:
        import mpmath
    except ImportError as error:
        raise ImportError(
            'arbitrary precision needs mpmath, not found: pip install "sigscale[theory]"'
        ) from error
    return mpmath
