"""A model whose parameters are others than when its penalty was made, for good or during one call."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn, optim
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn.utils import parametrizations

import sigscale as ss
from tests.penalty.test_attach import assert_same

L2, L1 = 0.3, 0.1


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()


def formula(tensors):
    return sum(L2 / 2 * p.square().sum() + L1 * p.abs().sum() for p in tensors)


def other_state(net):
    return {name: nn.Parameter(value * 3 + 1) for name, value in net.state_dict().items()}


def assign(net):
    net.load_state_dict(other_state(net), assign=True)


def swap(net):
    for name, value in other_state(net).items():
        torch.utils.swap_tensors(net.get_parameter(name), value)


def replace_layer(net):
    net[2] = nn.Linear(2, 1).double()


def replace_parameter(net):
    del net[0].weight
    net[0].weight = nn.Parameter(torch.full((2, 3), 2.0).double())


def add_layer(net):
    net.append(nn.Linear(1, 1).double())


def drop_bias(net):
    net[0].bias = None


def tie(net):
    net[2].weight = nn.Parameter(net[0].bias.detach().reshape(1, 2).clone())
    net[0].bias = nn.Parameter(torch.ones(2).double())
    net.append(nn.Linear(2, 1).double())
    net[3].weight = net[2].weight


def empty(net):
    net.to("meta")
    net.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.5)


CHANGES = [assign, swap, replace_layer, replace_parameter, add_layer, drop_bias, tie, empty]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters(change):
    """In the loss, and attached to an optimizer that is given the new parameters or made of them."""
    net = network()
    term, penalty = (ss.WeightPenalty(net, L2, L1) for _ in range(2))
    optimizer = optim.SGD(net.parameters(), lr=1.0)
    term()
    penalty.attach(optimizer)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    change(net)
    assert [*map(id, term.parameters)] == [*map(id, net.parameters())]
    torch.testing.assert_close(term.value(), formula(net.parameters()).detach())
    before = [p.detach().clone() for p in net.parameters()]
    pulls = [L2 * p + L1 * p.sign() for p in before]
    assert_same(torch.autograd.grad(term(), [*net.parameters()]), pulls)
    optimizer.param_groups[0]["params"] = [*net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_same(net.parameters(), [p - pull for p, pull in zip(before, pulls, strict=True)])
    term.attach(optim.SGD(net.parameters(), lr=1.0))


def test_names_after_change():
    """Patterns are of the names that there are now."""
    net = network()
    penalty = ss.WeightPenalty(net, L2, exclude=("*.bias", "2.*"))
    net.append(nn.Linear(1, 1))
    parametrizations.weight_norm(net[0])
    found = {name for name, p in net.named_parameters() if any(p is q for q in penalty.parameters)}
    assert found == {
        "0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "3.weight",
    }  # fmt: skip


def test_replaced_weights_are_freed():
    net = network()
    penalty = ss.WeightPenalty(net, L2)
    penalty.value()
    old = [weakref.ref(p) for p in net.parameters()]
    assign(net)
    gc.collect()
    assert [ref() for ref in old] == [None] * 4


def test_empty_model():
    """Nothing left to penalize is a penalty of 0."""
    net = network()
    penalty = ss.WeightPenalty(net, L2)
    del net[0], net[1]
    assert penalty() == 0
    assert penalty.parameters == ()


def test_unfit_parameters_after_change():
    net = network()
    penalty = ss.WeightPenalty(net, L2)
    net[0].weight = nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"got dtype torch.complex64 .* for 0\.weight: leave it out"):
        penalty()


def test_fully_sharded_data_parallel():
    """The shards of FSDP1 carry this mark, with which PyTorch refuses to flatten them again."""
    from torch.distributed.fsdp._common_utils import _set_fsdp_flattened

    net = network()
    penalty = ss.WeightPenalty(net, L2)
    _set_fsdp_flattened(net[2].weight)
    for use in (penalty, lambda: ss.WeightPenalty(net, L2), lambda: ss.WeightPenalty(net.parameters(), L2)):
        with pytest.raises(TypeError, match=r"shard of FullyShardedDataParallel.*shard with .*\.fully_shard"):
            use()


class Penalized(nn.Module):
    """Its forward is the loss, penalty included."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.penalty = ss.WeightPenalty(self, L2, L1)

    def forward(self, x):
        return self.net(x).square().sum() + self.penalty()


X = torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(5, 3)


def setting():
    """A loss of parameters with the penalty, the same by hand, and values other than the model's."""
    module = Penalized()

    def by_hand(values):
        inner = {name.removeprefix("net."): value for name, value in values.items()}
        return functional_call(module.net, inner, (X,)).square().sum() + formula(values.values())

    values = {name: p.detach() * 2 - 0.3 for name, p in module.named_parameters()}
    return module, lambda values: functional_call(module, values, (X,)), by_hand, values


TRANSFORMS = {
    "value": lambda f: f,
    "grad": grad,
    "jacrev": jacrev,
    "hessian": hessian,
    "jvp": lambda f: lambda values: jvp(f, (values,), (values,)),
    "vmap": lambda f: lambda values: vmap(f)({k: torch.stack([v, 3 * v]) for k, v in values.items()}),
    "vmap of grad": lambda f: TRANSFORMS["vmap"](grad(f)),
    "linearize": lambda f: lambda values: torch.func.linearize(f, values)[1](values),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.works_with("func.grad, jvp, hessian", "penalty")
def test_functional_call(name):
    module, penalized, by_hand, values = setting()
    before = module.penalty.value()
    torch.testing.assert_close(TRANSFORMS[name](penalized)(values), TRANSFORMS[name](by_hand)(values))
    assert torch.equal(module.penalty.value(), before)


@pytest.mark.parametrize("name", ["value", "grad", "vmap"])
def test_functional_call_compiled(name):
    _, penalized, by_hand, values = setting()
    compiled = torch.compile(TRANSFORMS[name](penalized), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(values), TRANSFORMS[name](by_hand)(values))


def test_frozen_parameters_in_functional_call():
    """A frozen parameter is left out there as well; a tensor in its place is not."""
    module, penalized, by_hand, values = setting()
    module.net[0].requires_grad_(False)
    parameters = dict(module.named_parameters())
    left_out = formula(module.net[0].parameters())
    torch.testing.assert_close(penalized(parameters), by_hand(parameters) - left_out)
    torch.testing.assert_close(penalized(values), by_hand(values))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.works_with("vmap, is_grads_batched", "penalty")
@pytest.mark.works_with("double backward", "penalty")
def test_batched_gradients(dtype):
    theta = nn.Parameter(torch.tensor([1.0, -2.0, 0.0], dtype=dtype))
    value = ss.WeightPenalty([theta], L2, L1)()
    factors = torch.tensor([1.0, -3.0], dtype=value.dtype)
    (batched,) = torch.autograd.grad(value, theta, factors, is_grads_batched=True, create_graph=True)
    wide = theta.detach().to(value.dtype)
    expected = factors[:, None] * (L2 * wide + L1 * wide.sign())
    torch.testing.assert_close(batched, expected.to(dtype))
    (second,) = torch.autograd.grad(batched.sum(), theta)
    torch.testing.assert_close(second, torch.full_like(theta, -2.0 * L2))


@pytest.mark.parametrize("vectorize", [False, True])
def test_autograd_functional_hessian(vectorize):
    _, penalized, by_hand, values = setting()
    name, *others = values

    def of_first(f):
        return lambda value: f({name: value, **{other: values[other] for other in others}})

    found, expected = (
        torch.autograd.functional.hessian(of_first(f), values[name], vectorize=vectorize)
        for f in (penalized, by_hand)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.works_with("forward AD", "penalty")
def test_forward_mode():
    theta = torch.tensor([1.0, -2.0]).double().requires_grad_()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(theta, torch.ones(2).double())
        value = torch.autograd.forward_ad.unpack_dual(ss.WeightPenalty([dual], L2, L1)())
    torch.testing.assert_close(value.tangent, -L2 * torch.ones(()).double())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copied_model(copied):
    """A copy's penalty is of the copy."""
    module = Penalized()
    other = copied(module)
    with torch.no_grad():
        other.net[0].weight.fill_(7.0)
    torch.testing.assert_close(other.penalty.value(), formula(other.parameters()).detach())
    torch.testing.assert_close(module.penalty.value(), formula(module.parameters()).detach())
