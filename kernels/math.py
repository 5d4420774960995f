"""Device arithmetic that the activations are written in: one expression each for compiler and interpreter.

Compiled, `exp2` and `quotient` are the hardware's approximations with subnormal results flushed to zero
(relative error at most 2^-22 and 2^-22; one special-function instruction each) and `fma` rounds once. The
interpreter has neither hardware approximations nor libdevice, so it takes NumPy's.
"""

from __future__ import annotations

from ._triton import INTERPRETED, libdevice, tl, triton
from .coefficients import EXP2, LN2, LOG2E, ROUNDER

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
        # Triton 3.6's interpreter rounds the product; of fp32 numbers it is exact in fp64.
        if x.dtype == tl.float64:
            return tl.fma(x, y, z)
        return (x.to(tl.float64) * y + z).to(tl.float32)

    @triton.jit
    def widen(x):
        # Triton's interpreter truncates on the way to bf16 and mistakes subnormals: convert by bits.
        if x.dtype != tl.bfloat16:
            return x.to(tl.float64) if x.dtype == tl.float64 else x.to(tl.float32)
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) << 16
        return bits.to(tl.float32, bitcast=True)

    @triton.jit
    def narrow(x, DTYPE):
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
        """The type that arithmetic runs in: fp64 for fp64, else fp32."""
        return x.to(tl.float64) if x.dtype == tl.float64 else x.to(tl.float32)

    @triton.jit
    def narrow(x, DTYPE: tl.constexpr):
        """Round to nearest even into the type of the tensor."""
        return x.to(DTYPE)

    fma = tl.fma
    exp2 = tl.exp2
    quotient = libdevice.fast_dividef


@triton.jit
def sin64(s):
    """sin s in fp64 for abs(s) <= 1.6, by its series: libdevice's reduction of large arguments spills."""
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
    """What rounding alpha to fp32 loses, relative to alpha."""
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
    else:
        r = quotient(1.0, fma(e, scale, 1.0))
    return (e * r) * r
