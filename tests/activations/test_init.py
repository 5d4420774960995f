"""Initial parameters: distributions, what is drawn and what is not, generators, errors."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import sigscale as ss

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BOTH = (ss.init.large_uniform_, ss.init.small_normal_)


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)
    )


class TestDistributions:
    def test_uniform(self, device):
        x = ss.init.large_uniform_(torch.empty(200_000, device=device), generator=seeded(0, device)).double()
        assert x.min() >= -10
        assert x.max() < 10
        for q in (0.01, 0.3, 0.5, 0.9):
            assert ss.quantile(x, q).item() == pytest.approx(20 * q - 10, abs=0.1)

    def test_normal(self, device):
        x = ss.init.small_normal_(torch.empty(200_000, device=device), generator=seeded(0, device)).double()
        for z in (-2.0, -0.5, 0.0, 1.0):
            share = 0.5 * (1 + math.erf(z / math.sqrt(2)))
            assert (x < 0.05 * z).double().mean().item() == pytest.approx(share, abs=0.005)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_bounds_of_the_interval(self, dtype):
        """Of half precision, uniform_() by itself draws numbers below -0.1 and -3.3."""
        for bound in (10.0, 0.1, 3.3, 1.001, Fraction(1, 3)):
            x = ss.init.large_uniform_(torch.empty(1 << 18, dtype=dtype), bound, seeded())
            assert x.double().min() >= -float(bound)
            assert x.double().max() < float(bound)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("sign", [1, -1])
    def test_numbers_rounded_to_the_ends(self, dtype, sign, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "uniform_", lambda x, low, high, generator: x.fill_(sign * high))
        for bound in (8.0, 0.1, 3.3):
            (x,) = ss.init.large_uniform_(torch.zeros(1, dtype=dtype), bound).double().tolist()
            assert -bound <= x < bound
            assert x == pytest.approx(sign * bound, rel=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("initialize", BOTH)
class TestModules:
    def test_weights_drawn_in_order_and_biases_zero(self, initialize):
        model, generator = network(), seeded(1)
        assert initialize(model, 0.7, seeded(1)) is model
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any()
            else:
                expected = torch.empty_like(parameter)
                if initialize is ss.init.large_uniform_:
                    nn.init.uniform_(expected, -0.7, 0.7, generator=generator)
                else:
                    nn.init.normal_(expected, 0, 0.7, generator=generator)
                assert torch.equal(parameter, expected)
                assert parameter.requires_grad

    def test_biases_of_recurrent_and_attention_layers(self, initialize):
        model = nn.ModuleList([nn.LSTM(3, 2), nn.MultiheadAttention(4, 2)])
        nn.init.ones_(model[1].in_proj_bias)
        initialize(model)
        for name, parameter in model.named_parameters():
            assert parameter.any() == ("bias" not in name), name

    def test_learned_alpha_stays(self, initialize):
        layer = nn.Linear(2, 2)
        layer.log2_alpha = nn.Parameter(torch.tensor([1.5]))
        initialize(layer)
        assert layer.log2_alpha.item() == 1.5

    def test_single_tensor(self, initialize):
        x = torch.zeros(3, requires_grad=True)
        assert initialize(x) is x
        assert x.all()
        assert x.is_leaf

    def test_default_generator(self, initialize, device):
        draws = []
        for _ in range(2):
            torch.manual_seed(5)
            draws.append(initialize(torch.empty(9, device=device)))
        assert torch.equal(*draws)

    def test_no_parameters(self, initialize):
        assert isinstance(initialize(nn.Tanh()), nn.Tanh)

    @pytest.mark.gpu
    def test_cpu_generator_on_every_device(self, initialize):
        one, other = network(), network().cuda()
        initialize(one, generator=seeded(3))
        initialize(other, generator=seeded(3))
        for parameter, on_gpu in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(parameter, on_gpu.cpu())

    def test_generator_of_another_device(self, initialize):
        """Numbers are drawn where the generator is; meta tensors stand in for those of another device."""
        generator, reference = seeded(3), seeded(3)
        initialize(torch.empty(5, device="meta"), generator=generator)
        initialize(torch.empty(5), generator=reference)
        assert torch.equal(generator.get_state(), reference.get_state())


OUT_OF_RANGE = [0.0, -1.0, math.nan, math.inf, 1e39, 1e-60, Fraction(10**400)]
LAZY = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("given", "arguments", "error", "message"),
    [
        *((network(), (v,), ValueError, r"(bound|std) must be .*> 0.*got") for v in OUT_OF_RANGE),
        *(
            (network(), (v,), TypeError, r"(bound|std) must be .*> 0.*got")
            for v in ("1", True, None, torch.tensor(1.0))
        ),
        (torch.zeros(2).half(), (40000,), ValueError, r"to 3.28e\+04 for torch.float16; got 40000"),
        *(
            (other, (), TypeError, r"for a module or a tensor; got .*: pass the model")
            for other in (None, 3.0, [torch.zeros(2)])
        ),
        (LAZY, (), ValueError, r"1\.weight has no shape yet: run the model once"),
        (torch.zeros(2), (1.0, 3), TypeError, "generator must be a torch.Generator or None; got int"),
    ],
)
@pytest.mark.parametrize("initialize", BOTH)
def test_bad_arguments(initialize, given, arguments, error, message):
    before = copy.deepcopy(given)
    with pytest.raises(error, match=message):
        initialize(given, *arguments)
    if isinstance(given, nn.Sequential) and given is not LAZY:
        assert all(map(torch.equal, before.parameters(), given.parameters()))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_bad_dtypes(dtype):
    model = network()
    before = model[0].weight.clone()
    model.counts = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
    for initialize in BOTH:
        for given, name in ((model, "counts"), (torch.ones(2, dtype=dtype), "the tensor")):
            with pytest.raises(TypeError, match=f"{name} must be a dense tensor .*got dtype {dtype}"):
                initialize(given)
        assert torch.equal(before, model[0].weight)
