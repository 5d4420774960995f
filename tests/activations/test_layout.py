"""Any shape, stride and memory format gives the values of the contiguous tensor, laid out as torch would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sigscale as ss
from sigscale.kernels._triton import INTERPRETED
from sigscale.kernels.activation import FORWARD_BLOCK, backward
from sigscale.kernels.device import takes_kernel
from sigscale.kernels.launcher import dense

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EXAMPLES = 40 if INTERPRETED else 150


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A tensor that may be permuted, sliced with gaps, expanded, offset by one element, 0-d or empty."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 7), max_size=4))
    steps = draw(st.lists(st.integers(1, 2), min_size=len(shape), max_size=len(shape)))
    offset = draw(st.integers(0, 1))
    size = [n * step for n, step in zip(shape, steps, strict=True)]
    count = torch.Size(size).numel()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    memory = torch.randn(count + offset, generator=generator, dtype=torch.float64).mul_(4).to(dtype)
    x = memory[offset:].reshape(size)[tuple(slice(None, None, step) for step in steps)]
    x = x.permute(draw(st.permutations(range(x.ndim))))
    return x.unsqueeze(0).expand(3, *x.shape) if draw(st.booleans()) else x


def same(result, expected):
    """Equal to the bit in a kernel; PyTorch's CPU functions differ by an ulp between vectors and rests."""
    if takes_kernel(result):
        assert torch.equal(result, expected)
    else:
        eps = torch.finfo(result.dtype).eps
        torch.testing.assert_close(result, expected, rtol=4 * eps, atol=eps * 1e-3)


@pytest.mark.parametrize("name", list(ss.FUNCTIONS))
@pytest.mark.interpreter(name=["tanh"], are_large=[False])
@pytest.mark.usefixtures("are_large")
def test_any_view(name, device):
    activation = getattr(ss, name)

    @settings(max_examples=EXAMPLES if name == "tanh" else EXAMPLES // 4)
    @given(x=views(), grad=views(), save=st.sampled_from(["input", "output"]))
    def check(x, grad, save):
        x = x.to(device) if device != "cpu" else x
        plain = x.clone(memory_format=torch.contiguous_format)
        x, plain = x.detach().requires_grad_(), plain.requires_grad_()
        y, want = activation(x, 1.7, save=save), activation(plain, 1.7, save=save)
        assert y.shape == x.shape
        for size, stride, like in zip(y.shape, y.stride(), torch.tanh(x).stride(), strict=True):
            assert x.numel() < 2 or size == 1 or stride == like
        same(y, want)
        # A gradient of another layout, drawn from the same kind of views.
        g = (
            torch.randn_like(want).transpose(0, -1).contiguous().transpose(0, -1)
            if x.ndim
            else torch.ones_like(y)
        )
        if grad.ndim and grad.shape[0] == 3:  # expanded
            g = torch.full((), 0.5, dtype=x.dtype, device=x.device).expand(x.shape)
        (dx,) = torch.autograd.grad(y, x, g)
        (dx_want,) = torch.autograd.grad(want, plain, g)
        assert dx.shape == x.shape
        same(dx, dx_want)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.interpreter
def test_around_a_block(dtype, device):
    """The masked tail begins where it must and writes no further."""
    block = FORWARD_BLOCK[dtype.itemsize]
    for n in (0, 1, block - 1, block, block + 1, 3 * block - 1, 3 * block, 3 * block + 1):
        x = torch.linspace(-5, 5, n, dtype=torch.float64).to(dtype).to(device)
        y = ss.tanh(x, 1.7)
        want = 1.7 * torch.tanh(x.double() / 1.7)
        tolerance = {8: 1e-14, 4: 1e-6, 2: 1e-2}[dtype.itemsize]
        torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.interpreter
def test_channels_last(device):
    x = torch.randn(2, 3, 5, 7, device=device).to(memory_format=torch.channels_last)
    assert dense(x) is x
    y = ss.tanh(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, 2 * torch.tanh(x / 2))


@pytest.mark.interpreter
def test_input_with_gaps(device):
    memory = torch.randn(10, 10, device=device)
    x, before = memory[:, ::2], memory.clone()
    assert dense(x) is not x
    torch.testing.assert_close(ss.tanh(x), 2 * torch.tanh(x / 2))
    assert torch.equal(memory, before)


@pytest.mark.interpreter
def test_output_memory(device):
    for alpha in (1.0, 2.0):
        x = torch.randn(64, device=device)
        assert ss.tanh(x, alpha).data_ptr() != x.data_ptr()


@pytest.mark.interpreter
def test_deterministic_bits(device):
    x = torch.randn(100_001, device=device, dtype=torch.bfloat16)
    g = torch.randn_like(x)
    results = []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        y = ss.sigmoid(leaf, 1.7)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, g)))
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


@pytest.mark.parametrize("name", ["tanh", "arctan"])
@pytest.mark.parametrize("threads", [1, 4])
def test_tables_of_16_bit_values(name, threads, monkeypatch):
    """A CPU looks the values of large tensors up; those of small ones, which it computes, are the same."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    activation = getattr(ss, name)
    x = torch.randn(40, 8, 32, 32).mul_(4).bfloat16()  # larger than a part
    for y in (x, x.to(memory_format=torch.channels_last), x[:, :, ::2], x[:1, :, ::3].expand(9, 8, 11, 32)):
        found, plain = activation(y, 1.7), y.contiguous().flatten().split(1000)
        assert torch.equal(found.flatten(), torch.cat([activation(part, 1.7) for part in plain]))
        assert found.stride() == torch.tanh(y).stride()


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    n = 2**31 + 12_345
    x = torch.empty(n, dtype=torch.bfloat16, device="cuda").normal_()
    y = ss.tanh(x)
    dx = backward(ss.FUNCTIONS["tanh"], torch.ones_like(x), x, 2.0, from_output=False)
    for part in (slice(0, 4096), slice(n - 4096, n), slice(2**31 - 2048, 2**31 + 2048)):
        u = x[part].double() / 2
        torch.testing.assert_close(y[part].double(), 2 * torch.tanh(u), rtol=4e-3, atol=1e-30)
        torch.testing.assert_close(dx[part].double(), torch.cosh(u) ** -2, rtol=4e-3, atol=1e-30)
