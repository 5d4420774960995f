"""Constants of the device math. Polynomials have their highest power first.

They are minimax in the relative error of the function, fitted by Lawson's iteration against mpmath; the
errors named are those with the coefficients rounded to fp32.
"""

from __future__ import annotations

from ._optional import INTERPRETED, tl


def constant(value):
    """A module-level constant for kernels; the interpreter reads globals as they are."""
    return value if INTERPRETED else tl.constexpr(value)


ALPHA_RANGE = (2.0**-36, 2.0**36)  # in which what the kernels form from alpha stays in the range of fp32
ALPHA_MIN, ALPHA_MAX = map(constant, ALPHA_RANGE)

LOG2E = constant(1.4426950408889634)
LN2 = constant(0.6931471805599453)
HALF_PI = constant(1.5707963267948966)

# Odd functions near 0, f(s) = s + s p. Of tanh, p / v^2 in powers of v^2 with v = 2 log2(e) s, up to s = 1.25
# (error 2^-26.0), 0.3 (2^-26.2) and 0.25 (2^-21.0).
# fmt: off
TANH = constant((
    2.518962e-12, -1.9765845e-10, 7.573432e-09, -2.0102738e-07,
    4.4705216e-06, -9.333639e-05, 0.0019234179, -0.04003767,
))
TANH_FP16 = constant((-8.727951e-05, 0.0019209567, -0.040037423))
TANH_BF16 = constant((0.0018577062, -0.040027227))
# Of arctan, p / s^2 in powers of s^2, up to s = 1 (2^-25.7 and 2^-20.4).
ARCTAN = constant((
    0.0029206884, -0.016367912, 0.043211836, -0.075522125,
    0.10666004, -0.14211056, 0.19993773, -0.33333153,
))
ARCTAN_BF16 = constant((0.008106364, -0.03779671, 0.08484103, -0.13544576, 0.19897874, -0.3332849))
# Of sin, p / s^2 in powers of s^2, up to s = pi / 2 (2^-26.6).
SIN = constant((2.6057746e-06, -0.00019809601, 0.0083330665, -0.1666666))
# Of tanh u - u tanh' u, over u^3 in powers of u^2, up to |u| = 0.8 (2^-20.8).
TANH_NEAR_ZERO = (-0.018730624, 0.07381115, -0.17038451, 0.3231434, -0.5332968, 0.66666633)
TANH_ALPHA = constant(TANH_NEAR_ZERO)
# fmt: on
# For CPUs, the same of arctan up to 0.3 (2^-24.1), where the difference has lost five bits.
ARCTAN_NEAR_ZERO = (0.7286044, -0.8753108, 0.8567149, -0.79999525, 0.6666667)

# (2^f - 1) / f up to |f| = 1/2 (2^-25.9).
EXP2 = constant((0.00015353362, 0.0013398875, 0.009618437, 0.055503324, 0.24022648, 0.6931472))
ROUNDER = constant(12582912.0)  # 1.5 2^23: adding it rounds to an integer
