"""The convolution of many networks at once: against PyTorch's own in float64.

On a GPU and in the interpreter by the kernels.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sigscale.kernels import convolution
from sigscale.kernels.convolution import PIXELS_A_PROGRAM, TILE, convolve

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize(("seeds", "images", "side"), [(1, 2, 8), (3, 9, 8), (2, 1, 16), (2, 1, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradients(device, seeds, images, side, dtype):
    """Of all pixels, those at the images' edges and in a last, partly filled program included."""
    numbers = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, images, 3 * seeds, side, side, generator=numbers, dtype=dtype)
    weight = torch.randn(3 * seeds, 3, 3, 3, generator=numbers, dtype=dtype)
    mine = [tensor.to(device).requires_grad_() for tensor in (x, weight)]
    true = [tensor.double().requires_grad_() for tensor in (x, weight)]
    y, expected = convolve(*mine), F.conv2d(*true, padding=1, groups=seeds)
    found = y, *torch.autograd.grad(y, mine, g.to(device))
    for one, other in zip(found, (expected, *torch.autograd.grad(expected, true, g.double())), strict=True):
        tolerance = 16 * torch.finfo(dtype).eps * other.abs().max().item()
        assert one.dtype == dtype
        torch.testing.assert_close(one.cpu().double(), other, rtol=0, atol=tolerance)


def test_sizes_above_fill_programs_partly():
    assert 9 * 8 * 8 % PIXELS_A_PROGRAM
    assert 9 * 8 * 8 % TILE


def test_only_what_is_wanted(device, monkeypatch):
    """The first layer's images need no gradient, and no kernel makes one."""
    convolved, backward = convolution._convolve, []
    monkeypatch.setattr(
        convolution,
        "_convolve",
        lambda *a, **kind: (backward.append(kind["backward"]), convolved(*a, **kind))[1],
    )
    x = torch.randn(1, 3, 8, 8, device=device)
    weight = torch.randn(3, 3, 3, 3, device=device, requires_grad=True)
    convolve(x, weight).sum().backward()
    assert not any(backward)
    assert weight.grad.shape == weight.shape


def test_not_contiguous(device):
    x = torch.randn(2, 3, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(3, 3, 3, 3, device=device).transpose(2, 3)
    torch.testing.assert_close(convolve(x, weight), F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-5)
