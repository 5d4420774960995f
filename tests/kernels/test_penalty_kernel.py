"""Adding a penalty's gradient to many tensors: the kernel and its twin against the formula in fp64."""

from __future__ import annotations

import pytest
import torch

from sigscale.kernels import launcher
from sigscale.kernels.device import takes_kernel
from sigscale.kernels.penalty import BLOCK, CHUNK, add_penalty

pytestmark = pytest.mark.interpreter

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def pairs(dtype, device):
    """Gradients and parameters of all shapes: empty, unaligned, around blocks and chunks, in odd layouts."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 7, 0, BLOCK[dtype.itemsize], BLOCK[dtype.itemsize] + 1, CHUNK - 1, CHUNK, 2 * CHUNK + 9)

    def made():
        tensors = [torch.randn(n, generator=generator).to(device, dtype) for n in sizes]
        tensors.append(torch.randn(71, generator=generator).to(device, dtype)[1:])
        images = torch.randn(3, 4, 5, 6, generator=generator).to(device, dtype)
        tensors.append(images.to(memory_format=torch.channels_last))
        tensors.append(torch.randn(6, 8, generator=generator).to(device, dtype).t())
        tensors.append(torch.randn(6, 8, generator=generator).to(device, dtype)[:, 2:5])
        return [*tensors, torch.randn((), generator=generator).to(device, dtype)]

    gradients, thetas = made(), made()
    gradients[10] = gradients[10].contiguous()  # not in the parameter's order
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-7, -1e-7], dtype=dtype)
    thetas[1] = special.to(device)
    return gradients, thetas


def roundoff(dtype):
    return torch.finfo(dtype).eps / 2


def truth(gradients, thetas, l2, l1, scale):
    added = [(l2 * t.double() if l2 else 0) + l1 * t.double().sign() for t in thetas]
    return [g.double() + scale * a for g, a in zip(gradients, added, strict=True)], added


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize(("l2", "l1"), [(0.01, 0.0), (0.0, 0.3), (0.7, 0.03), (-0.7, -0.03)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_formula(dtype, l2, l1, scale, device):
    gradients, thetas = pairs(dtype, device)
    before = [theta.clone() for theta in thetas]
    expected, added = truth(gradients, thetas, l2, l1, scale or 1.0)
    sizes = [g.double().abs() + (scale or 1.0) * a.abs() for g, a in zip(gradients, added, strict=True)]
    add_penalty(gradients, thetas, l2, l1, None if scale is None else torch.tensor(scale, device=device))
    for result, true, size in zip(gradients, expected, sizes, strict=True):
        finite = true.isfinite()
        assert torch.equal(result.isfinite(), finite)
        assert torch.equal(result.isnan(), true.isnan())
        error = (result.double() - true).abs()[finite]
        unit, least = roundoff(dtype), torch.finfo(dtype).smallest_normal
        arithmetic = 4 * roundoff(dtype if dtype.itemsize == 8 else torch.float32)
        tolerance = (unit + arithmetic) * size[finite] + least * unit
        assert (error <= tolerance).all()
    for theta, same in zip(thetas, before, strict=True):
        torch.testing.assert_close(theta, same, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_l2_is_what_pytorch_adds(dtype, device):
    """Of a factor that 16-bit types hold, to which PyTorch's CPU code rounds it."""
    gradients, thetas = pairs(dtype, device)
    stock = [gradient.clone() for gradient in gradients]
    add_penalty(gradients, thetas, 2.0**-7, 0.0)
    torch._foreach_add_(stock, thetas, alpha=2.0**-7)
    for result, expected in zip(gradients, stock, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_factors(dtype, device):
    theta = torch.tensor([3.0, -0.25], device=device, dtype=dtype)
    gradient = torch.zeros_like(theta)
    add_penalty([gradient], [2.0**14 * theta], 1e-8, 0.0)
    torch.testing.assert_close(gradient, (2.0**14 * 1e-8 * theta.double()).to(dtype))


def test_which_way(monkeypatch, device):
    """Plain tensors in one launch for each dtype and alignment; all else, by PyTorch."""
    launched = []
    original = launcher.launch

    def noting(kernel, what, grid, tensors, *arguments, num_warps):
        launched.append(tensors[0].dtype)
        original(kernel, what, grid, tensors, *arguments, num_warps=num_warps)

    monkeypatch.setattr(launcher, "launch", noting)
    thetas = [torch.randn(50, device=device).to(dtype) for dtype in (*DTYPES, *DTYPES)]
    gradients = [torch.zeros_like(theta) for theta in thetas]
    thetas.append(torch.randn(9, device=device))
    gradients.append(torch.zeros(9, dtype=torch.float64, device=device))
    add_penalty(gradients, thetas, 0.5, 0.0)
    for gradient, theta in zip(gradients, thetas, strict=True):
        torch.testing.assert_close(gradient, (0.5 * theta).to(gradient.dtype))
    assert launched == (list(DTYPES) if takes_kernel(thetas[0]) else [])


def test_nothing_to_add(device):
    add_penalty([], [], 0.1, 0.1)
    add_penalty([torch.empty(0, device=device)], [torch.empty(0, device=device)], 0.1, 0.1)


def test_factors_as_bits():
    for number in (0.0, -0.0, 0.1, -3.0, 1e-300):
        assert torch.tensor(launcher.bits(number)).view(torch.float64) == number


@pytest.mark.gpu
def test_thousands_of_tensors():
    thetas = [torch.randn(n % 997 + 1, device="cuda") for n in range(5000)]
    thetas.append(torch.randn(300_000_000, device="cuda"))
    gradients = [torch.randn_like(theta) for theta in thetas]
    stock = [gradient.clone() for gradient in gradients]
    add_penalty(gradients, thetas, 0.01, 0.0)
    torch._foreach_add_(stock, thetas, alpha=0.01)
    for result, expected in zip(gradients, stock, strict=True):
        torch.testing.assert_close(result, expected)
