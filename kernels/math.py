"""The device arithmetic and the coefficients that activations are written in.

Compiled, `exp2` and `quotient` are the hardware's approximations with subnormal results flushed to zero
(relative error at most 2^-22 and 2^-22; one special-function instruction each) and `fma` rounds once. The
interpreter has neither hardware approximations nor libdevice, and uses NumPy's functions.
"""

from __future__ import annotations

from ._triton import INTERPRETED, libdevice, tl, triton


def constant(value):
    """A module-level constant that kernels may read; the interpreter reads globals as they are."""
    return value if INTERPRETED else tl.constexpr(value)


ALPHA_RANGE = (2.0**-36, 2.0**36)  # keeps what kernels compute from alpha within the range of fp32
ALPHA_MIN, ALPHA_MAX = map(constant, ALPHA_RANGE)

LOG2E = constant(1.4426950408889634)
LN2 = constant(0.6931471805599453)
HALF_PI = constant(1.5707963267948966)

# Polynomials, highest power first: minimax in the relative error of the function, fitted by Lawson's
# iteration against mpmath. The errors stated hold with the coefficients rounded to fp32.
#
# Odd functions near 0, f(s) = s + s p. tanh: p / v^2 in powers of v^2 with v = 2 log2(e) s, up to s = 1.25
# (error 2^-26.0), 0.3 (2^-26.2) and 0.25 (2^-21.0).
# fmt: off
TANH = constant((
    2.518962e-12, -1.9765845e-10, 7.573432e-09, -2.0102738e-07,
    4.4705216e-06, -9.333639e-05, 0.0019234179, -0.04003767,
))
TANH_FP16 = constant((-8.727951e-05, 0.0019209567, -0.040037423))
TANH_BF16 = constant((0.0018577062, -0.040027227))
# arctan: p / s^2 in powers of s^2, up to s = 1 (2^-25.7 and 2^-20.4).
ARCTAN = constant((
    0.0029206884, -0.016367912, 0.043211836, -0.075522125,
    0.10666004, -0.14211056, 0.19993773, -0.33333153,
))
ARCTAN_BF16 = constant((0.008106364, -0.03779671, 0.08484103, -0.13544576, 0.19897874, -0.3332849))
# sin: p / s^2 in powers of s^2, up to s = pi / 2 (2^-26.6).
SIN = constant((2.6057746e-06, -0.00019809601, 0.0083330665, -0.1666666))
# tanh u - u tanh' u, over u^3 in powers of u^2, up to |u| = 0.8 (2^-20.8).
TANH_NEAR_ZERO = (-0.018730624, 0.07381115, -0.17038451, 0.3231434, -0.5332968, 0.66666633)
TANH_ALPHA = constant(TANH_NEAR_ZERO)
# fmt: on
# For CPUs, the same of arctan up to 0.3 (2^-24.1), where the difference has lost five bits.
ARCTAN_NEAR_ZERO = (0.7286044, -0.8753108, 0.8567149, -0.79999525, 0.6666667)

# (2^f - 1) / f up to |f| = 1/2 (2^-25.9).
EXP2 = constant((0.00015353362, 0.0013398875, 0.009618437, 0.055503324, 0.24022648, 0.6931472))
ROUNDER = constant(12582912.0)  # 1.5 2^23: adding it rounds to an integer

if INTERPRETED:
    import numpy as np

    def _by_numpy(function):
        """An elementwise NumPy function as a device function of the interpreter."""

        def device_function(x):
            handle = type(x.handle)(function(x.handle.data), x.handle.dtype)
            return tl.tensor(handle, x.type)

        return device_function

    tanh64 = _by_numpy(np.tanh)
    atan64 = _by_numpy(np.arctan)

    @triton.jit
    def fma(x, y, z):
        # Triton 3.6's interpreter rounds the product; that of fp32 numbers is exact in fp64.
        if x.dtype == tl.float64:
            return tl.fma(x, y, z)
        return (x.to(tl.float64) * y + z).to(tl.float32)

    @triton.jit
    def widen(x):
        # Triton's interpreter mishandles subnormals and truncates toward bf16: convert by bits.
        if x.dtype != tl.bfloat16:
            return x.to(tl.float64) if x.dtype == tl.float64 else x.to(tl.float32)
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) << 16
        return bits.to(tl.float32, bitcast=True)

    @triton.jit
    def narrow(x, DTYPE, PTX=False):
        if DTYPE != tl.bfloat16:
            return x.to(DTYPE)
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)

    @triton.jit
    def exp2(x):
        return tl.exp2(x)

    @triton.jit
    def quotient(x, y):
        return x / y

else:
    tanh64 = libdevice.tanh
    atan64 = libdevice.atan

    @triton.jit
    def widen(x):
        """x in the type that arithmetic runs in: fp64 for fp64, else fp32."""
        return x.to(tl.float64) if x.dtype == tl.float64 else x.to(tl.float32)

    @triton.jit
    def narrow(x, DTYPE: tl.constexpr, PTX: tl.constexpr = False):
        """x rounded to nearest even in the tensor's type.

        With PTX, numbers become bf16 two by two even if each is used by itself afterward.
        """
        if PTX and DTYPE == tl.bfloat16:
            y = tl.inline_asm_elementwise(
                "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], tl.bfloat16, is_pure=True, pack=2
            )
        else:
            y = x.to(DTYPE)
        return y

    fma = tl.fma
    exp2 = tl.exp2
    quotient = libdevice.fast_dividef


@triton.jit
def sin64(s):
    """sin s in fp64 for abs(s) <= 1.6, as a series: libdevice reduces large arguments, spilling registers."""
    w = s * s
    p = w * (-1.0 / 121645100408832000.0) + 1.0 / 355687428096000.0
    p = p * w - 1.0 / 1307674368000.0
    p = p * w + 1.0 / 6227020800.0
    p = p * w - 1.0 / 39916800.0
    p = p * w + 1.0 / 362880.0
    p = p * w - 1.0 / 5040.0
    p = p * w + 1.0 / 120.0
    p = p * w - 1.0 / 6.0
    return s + s * (w * p)


@triton.jit
def split(value):
    """An fp64 scalar as the unevaluated sum of two fp32 numbers."""
    high = value.to(tl.float32)
    return high, (value - high.to(tl.float64)).to(tl.float32)


@triton.jit
def rounded_off(alpha, inv):
    """The part of alpha lost by rounding it to fp32, relative to alpha."""
    _, low = split(alpha)
    return low * inv.to(tl.float32)


@triton.jit
def product(x, high, low):
    """x * (high + low), rounded once; x must be finite, since inf * low is NaN where low <= 0."""
    return fma(x, high, x * low)


@triton.jit
def at_most(x, bound):
    """min(x, bound); NaN stays NaN."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_least(x, bound):
    """max(x, bound); NaN stays NaN."""
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp(x, bound):
    """x limited to [-bound, bound] (fp32); NaN stays NaN."""
    return tl.clamp(x, -bound, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def copysign(magnitude, sign):
    """abs(magnitude) with the sign bit of `sign`, zeros included (fp32)."""
    bits = magnitude.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return (bits | (sign.to(tl.int32, bitcast=True) & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def polynomial(w, COEFFICIENTS: tl.constexpr):
    """Horner's scheme, highest power first; at least two coefficients, exact in fp32."""
    p = fma(w, COEFFICIENTS[0], COEFFICIENTS[1])
    for i in tl.static_range(2, len(COEFFICIENTS)):
        p = fma(p, w, COEFFICIENTS[i])
    return p


@triton.jit
def exp2_accurate(x, high, low, SHIFT: tl.constexpr):
    """2^(x (high + low) - SHIFT) as a mantissa and a power of two, each fp32, relative error below 2^-23.

    The exponent must lie in [-126, 127]. Eleven instructions; the hardware's own costs one and errs by 2^-22.
    """
    shifted = fma(x, high, ROUNDER - SHIFT)
    f = fma(x, low, fma(x, high, (ROUNDER - SHIFT) - shifted))
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return fma(f, polynomial(f, EXP2), 1.0), power.to(tl.float32, bitcast=True)


@triton.jit
def exp_minus(x, alpha, inv, shift, DTYPE: tl.constexpr):
    """2^shift e^(-x inv) for x >= 0, in fp32: relative error 8e-7 down to 2^-126 (16-bit types: 9e-6)."""
    high, low = split(inv * -LOG2E)
    if DTYPE == tl.float32:
        x = at_most(x, 512.0 * alpha.to(tl.float32))
        v = x * high
        rest = fma(x, low, fma(x, high, -v))
        e = exp2(v + shift)
        e = fma(e, rest * LN2, e)
    else:
        e = exp2(fma(x, high, shift))
    return e


@triton.jit
def logistic_slope(e, scale):
    """e / (1 + scale e)^2"""
    if e.dtype == tl.float64:
        r = 1.0 / (1.0 + scale * e)
        slope = (e * r) * r
    else:  # two quotients by one number take one reciprocal, and none of it by itself
        d = fma(e, scale, 1.0)
        slope = quotient(quotient(e, d), d)
    return slope
