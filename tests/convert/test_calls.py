"""`scale_activations(functional=True)`: calls such as torch.tanh(x) in forward, scaled as they happen."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from torch.nn.functional import softsign
from torch.overrides import TorchFunctionMode

import sigscale as ss
from tests.oracles.models import Forward, traces

FORMULAS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "arctan": torch.atan,
    "softsign": lambda u: u / (1 + u.abs()),
}


def scaled(name, x, alpha):
    return alpha * FORMULAS[name](x / alpha)


def tanh_call() -> Forward:
    return Forward(lambda m, x: torch.tanh(x))


def into_new(function, x):
    return function(x, out=torch.empty_like(x))


def calls_of(name: str) -> dict[str, object]:
    """PyTorch's spellings of a function, as functions of one tensor."""
    function = ss.FUNCTIONS[name]
    found = {}
    for spelling in (name, *function.torch_aliases):
        for prefix, place in (("torch", torch), ("F", F), ("torch.special", torch.special)):
            for variant in (spelling, f"{spelling}_"):
                if hasattr(place, variant):
                    found[f"{prefix}.{variant}"] = getattr(place, variant)
        for variant in (spelling, f"{spelling}_"):
            if hasattr(torch.Tensor, variant):
                found[f"Tensor.{variant}"] = getattr(torch.Tensor, variant)
                found[f"x.{variant}"] = lambda x, variant=variant: getattr(x, variant)()
        if hasattr(torch, spelling):
            found[f"out={spelling}"] = partial(into_new, getattr(torch, spelling))
    return found


CALLS = [(name, text, call) for name in FORMULAS for text, call in calls_of(name).items()]


@pytest.mark.parametrize(("name", "call"), [c[::2] for c in CALLS], ids=[c[1] for c in CALLS])
def test_every_spelling(name, call):
    x = torch.linspace(-6, 6, 41, dtype=torch.float64)
    model = Forward(lambda m, x: call(x.clone()))
    ss.scale_activations(model, 1.7, functional=True, functions=name)
    torch.testing.assert_close(model(x), scaled(name, x, 1.7), rtol=1e-14, atol=1e-15)
    others = [other for other in FORMULAS if other != name]
    ss.unscale_activations(model)
    ss.scale_activations(model, 1.7, functional=True, functions=others)
    assert torch.equal(model(x), call(x.clone()))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.tanh, self.own = nn.Tanh(), ss.nn.Tanh(3.0)

    def head(self, x):
        return torch.atan(x)

    def forward(self, x, mask=None):
        y = self.tanh(self.linear(x))
        y = torch.tanh(y) + y.sigmoid() + F.softsign(y)
        if mask is not None:
            y = y * mask
        y = self.own(ss.tanh(y, 5.0))
        return self.linear(self.head(softsign(y)) + math.tanh(0.0))


def values(model: Functional, x, alpha, mask=1.0):
    """The model with every activation scaled but sigmoid, written out."""
    y = scaled("tanh", model.linear(x), alpha)
    y = scaled("tanh", y, alpha) + y.sigmoid() + scaled("softsign", y, alpha)
    y = scaled("tanh", scaled("tanh", y * mask, 5.0), 3.0)
    return model.linear(scaled("arctan", scaled("softsign", y, alpha), alpha))


def functional_model(alpha=1.7, **options) -> Functional:
    torch.manual_seed(0)
    model = Functional().double()
    ss.scale_activations(model, alpha, functional=True, exclude="own", **options)
    return model


X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_values_gradients_and_arguments():
    model, plain, x = functional_model(), functional_model(), X.clone().requires_grad_()
    mask = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    assert str(inspect.signature(model.forward)) == "(x, mask=None)"
    for given in ((), (mask,)):
        y, want = model(x, *given), values(plain, x, 1.7, *given)
        torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-14)
        found, expected = (torch.autograd.grad(each.sum(), x)[0] for each in (y, want))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_undone_to_the_bit():
    """The model stays the same object, with its hooks and keys."""
    torch.manual_seed(0)
    model, calls = Functional().double(), []
    model.register_forward_hook(lambda *_: calls.append("after"))
    model.linear.register_forward_pre_hook(lambda *_: calls.append("linear"))
    plain, before, keys, text = model(X), traces(model), [*model.state_dict()], repr(model)
    for options in ({"exclude": ["tanh", "own"]}, {}, {"learnable": True}):
        options = {"exclude": "own", "functional": True, "example_inputs": X, **options}
        report = ss.scale_activations(model, **options)
        assert report.model is model
        if "tanh" in options["exclude"]:
            assert (isinstance(model, Functional), [*model.state_dict()], repr(model)) == (True, keys, text)
        calls.clear()
        assert not torch.equal(model(X), plain)
        assert calls == ["linear", "linear", "after"]
        undone = ss.unscale_activations(model, exclude="own")
        assert undone.parameters == report.parameters
        assert traces(model) == before
        assert torch.equal(model(X), plain)


@pytest.mark.parametrize("learnable", [False, True])
def test_copies_pickles_and_saved_models(learnable, tmp_path):
    model = functional_model(learnable=learnable)
    torch.save(model, tmp_path / "model.pt")
    expected = model(X)
    copies = [copy.deepcopy(model), *(pickle.loads(pickle.dumps(model, protocol=p)) for p in (1, None))]
    copies += [torch.load(tmp_path / "model.pt", weights_only=False), copy.copy(model)]
    copies += [] if learnable else [model._replicate_for_data_parallel()]
    for other in copies:
        assert torch.equal(other(X), expected)
    for other in copies[:4]:
        other.linear.weight.data.zero_()
        assert torch.equal(model(X), expected)
        ss.unscale_activations(other, exclude="own")
        assert type(other) is Functional


def test_a_class_that_copies_itself():
    class Own(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size

        def forward(self, x):
            return torch.tanh(x[: self.size])

        def __deepcopy__(self, memo):
            return Own(self.size)

    model = nn.Sequential(Own(2))
    ss.scale_activations(model, functional=True, include="0")
    for other in (model, copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))):
        assert torch.equal(other(X), ss.tanh(X[:2]))


IGNORED = ("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.filterwarnings(*IGNORED)
def test_wrappers():
    """Around a scaled model, and a model scaled through its wrapper, even after it was compiled."""
    torch.compiler.reset()
    model = functional_model()
    expected = model(X)
    for wrapped in (nn.DataParallel(model), nn.Sequential(model), torch.compile(model, backend="eager")):
        torch.testing.assert_close(wrapped(X), expected, rtol=1e-13, atol=1e-14)
    ss.unscale_activations(model, exclude="own")
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        plain = wrapped(X)
        report = ss.scale_activations(wrapped, 1.7, functional=True, exclude="own")
        assert report.model is wrapped
        torch.testing.assert_close(wrapped(X), expected, rtol=1e-13, atol=1e-14)
        ss.unscale_activations(wrapped, exclude="own")
        assert torch.equal(wrapped(X), plain)


@pytest.mark.parametrize(
    ("backend", "learnable"), [("eager", False), ("aot_eager", True), ("inductor", False)]
)
@pytest.mark.filterwarnings(*IGNORED)
def test_compiled_in_one_graph(backend, learnable):
    torch.compiler.reset()
    model = functional_model(learnable=learnable)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    parameters = [*model.parameters()]
    found, wanted = (
        ((y := call(X)).detach(), *torch.autograd.grad(y.sum(), parameters)) for call in (compiled, model)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings(*IGNORED)
@pytest.mark.works_with("torch.export", "activation")
def test_exported(strict):
    model = functional_model()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},), strict=strict)
    torch.testing.assert_close(program.module()(X[:3]), model(X[:3]), rtol=1e-13, atol=1e-14)


def test_under_torch_func():
    model = functional_model(learnable=True)
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).sum()

    gradients = torch.func.grad(loss)(parameters, X)
    model(X).sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-12, atol=1e-13)
    assert torch.allclose(torch.vmap(model)(X), model(X))
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X)
    torch.testing.assert_close(each["linear.weight"].sum(0), gradients["linear.weight"])


class Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_inside_autocast_no_grad_and_other_modes():
    model = nn.Sequential(nn.Linear(3, 3), tanh_call())
    ss.scale_activations(model, functional=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X.float()).dtype is torch.bfloat16
    with torch.no_grad():
        assert not model(X.float()).requires_grad
    with torch.device("cpu"), Seen() as seen:
        torch.testing.assert_close(model(X.float()), 2 * torch.tanh(model[0](X.float()) / 2))
    assert "linear" in seen.names


def test_random_numbers_and_branches_are_not_frozen():
    def noisy(m, x):
        y = torch.tanh(x) * random.random()
        return y if m.training and y.sum() > 0 else -y

    model, x = Forward(noisy), torch.ones(3)
    ss.scale_activations(model, functional=True)
    assert not torch.equal(model(x), model(x))
    assert (model(x) > 0).all()
    assert (model.eval()(x) < 0).all()


class Nested(nn.Module):
    """tanh in forward, in modules of one's own, in nn.Tanh and in other modules of PyTorch."""

    def __init__(self):
        super().__init__()
        self.first, self.gate = tanh_call(), nn.Sequential(tanh_call(), nn.Tanh())
        self.act = nn.Tanh()

    def forward(self, x):
        self.last = [torch.tanh(x), self.first(x), self.gate[0](x), self.gate[1](x), self.act(x)]
        return sum(self.last) + self.gate(x)


def alphas(model: Nested) -> list[float]:
    """The alpha of each part: a tanh of large values is alpha."""
    model(torch.full((1,), 1e6))
    return [part.item() for part in model.last]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({}, [2, 2, 2, 2, 2]),
        ({"exclude": "first"}, [2, 1, 2, 2, 2]),
        ({"exclude": "gate"}, [2, 2, 1, 1, 2]),
        ({"exclude": "gate.*"}, [2, 2, 1, 1, 2]),
        ({"exclude": "act"}, [2, 2, 2, 2, 1]),
        ({"include": "first"}, [1, 2, 1, 1, 1]),
        ({"include": "gate"}, [1, 1, 2, 2, 1]),
        ({"include": ["gate", "act"], "exclude": "gate.0"}, [1, 1, 1, 2, 2]),
        ({"include": "Nested", "exclude": ["first", "gate.1"]}, [2, 1, 2, 1, 2]),
    ],
)
def test_patterns(patterns, expected):
    model = Nested()
    ss.scale_activations(model, functional=True, **patterns)
    assert alphas(copy.deepcopy(model)) == expected
    assert alphas(model) == expected
    ss.unscale_activations(model)
    assert alphas(model) == [1] * 5
    assert not any("_scaled_calls" in vars(module) for module in model.modules())


def test_no_pattern_left():
    model = Nested()
    with pytest.raises(ValueError, match="must have activations to scale"):
        ss.scale_activations(model, functional=True, exclude="*")
    assert alphas(model) == [1] * 5


def test_several_alphas_nested():
    model = Nested()
    ss.scale_activations(model, 3.0, functional=True, include="gate")
    with pytest.raises(ValueError, match=r"scaled twice; .*'gate\.0', calls of tanh, .*alpha=3.0.*exclude="):
        ss.scale_activations(model, functional=True)
    assert alphas(model) == [1, 1, 3, 3, 1]
    ss.scale_activations(model, 2.0, functional=True, exclude=["gate", "act"])
    ss.scale_activations(model, 4.0, include=["act"])
    assert alphas(model) == [2, 2, 3, 3, 4]
    for pattern, left in (("gate.*", [2, 2, 1, 1, 4]), ("act", [2, 2, 1, 1, 1]), ("Nested", [1] * 5)):
        ss.unscale_activations(model, include=pattern)
        assert alphas(model) == left


def test_modules_inside_whose_forward_was_replaced():
    """As libraries do that move weights around; the mode of the model around them scales their calls."""
    model = Nested()
    original = model.first.forward
    model.first.forward = lambda x: original(x)
    ss.scale_activations(model, functional=True)
    assert alphas(model) == [2] * 5
    ss.unscale_activations(model)
    with pytest.raises(ValueError, match="'first', which had its forward replaced"):
        ss.scale_activations(model, functional=True, exclude="first")


def test_a_subclass_with_calls_in_forward():
    class Doubled(nn.Tanh):
        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(Doubled())
    ss.scale_activations(model, functional=True)
    torch.testing.assert_close(model(X), 2 * scaled("tanh", X, 2.0))


def test_functions_given_to_modules_of_pytorch():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 1, 8, activation=torch.tanh, batch_first=True, dropout=0.0)
    x = torch.randn(2, 3, 4)
    plain = model(x)
    report = ss.scale_activations(model, functional=True, example_inputs=x)
    assert [(e.before, e.note) for e in report.changed] == [("torch.tanh", "inside PyTorch")]
    assert not torch.allclose(model(x), plain)
    assert torch.equal(model.eval()(x), model.train()(x))


def test_other_functions_that_call_tanh_inside_stay():
    x = torch.randn(7)
    for function in (F.tanhshrink, F.mish, lambda x: F.gelu(x, approximate="tanh"), F.logsigmoid):
        model = Forward(lambda m, x, function=function: function(x))
        ss.scale_activations(model, functional=True)
        assert torch.equal(model(x), function(x))


@pytest.mark.parametrize(
    "x", [torch.arange(5), torch.tensor([1 + 2j]), torch.tensor([True]), torch.ones(2, 2).to_sparse()]
)
def test_inputs_that_only_pytorch_takes(x):
    model = tanh_call()
    ss.scale_activations(model, functional=True)
    expected = 2 * torch.tanh(x / 2)
    torch.testing.assert_close(model(x), expected)
    assert model(x).dtype is expected.dtype


def test_in_place_calls():
    model = Forward(lambda m, x: (x * 3).tanh_())
    ss.scale_activations(model, functional=True)
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    torch.testing.assert_close(x.grad, 3 / torch.cosh(1.5 * X) ** 2)
    model(X.bfloat16().requires_grad_()).sum().backward()  # 16 bits, of which the input is kept
    same = torch.ones(3)
    inside = Forward(lambda m, x: torch.tanh_(x))
    ss.scale_activations(inside, functional=True)
    assert inside(same) is same
    assert (same == 2 * torch.tanh(torch.tensor(0.5))).all()
    for bad in (torch.arange(3), torch.ones(3, requires_grad=True)):
        with pytest.raises(RuntimeError, match=r"can't be cast|leaf Variable"):
            inside(bad)


def test_out():
    out = torch.empty(5, 3, dtype=torch.float64)
    model = Forward(lambda m, x: torch.tanh(x, out=out))
    ss.scale_activations(model, functional=True)
    assert model(X) is out
    torch.testing.assert_close(out, scaled("tanh", X, 2.0))
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        model(X.clone().requires_grad_())


def test_bad_calls_get_pytorchs_own_errors():
    for arguments in ((), (X, 2), (None,)):
        model = Forward(lambda m, x, arguments=arguments: torch.tanh(*arguments))
        ss.scale_activations(model, functional=True)
        with pytest.raises(TypeError):
            model(X)


def test_learned_alpha_of_calls():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), tanh_call(), nn.Tanh(), nn.Linear(3, 1)).double()
    report = ss.scale_activations(model, 8.0, functional=True, learnable=True, exclude="0")
    torch.testing.assert_close(model[1](X), scaled("tanh", X, 8.0))
    assert [name for name, _ in model.named_parameters() if "log2" in name] == ["log2_alpha", "2.log2_alpha"]
    assert [p.item() for p in report.parameters] == [3.0, 3.0]
    penalty = ss.WeightPenalty(model, l2=0.1)
    assert not set(report.parameters) & set(penalty.parameters)
    optimizer = torch.optim.SGD(report.parameters, lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()
    assert all(p.grad is not None and p.item() != 3.0 for p in report.parameters)


class Traced(nn.Module):
    def forward(self, x):
        return torch.tanh(x)


@pytest.mark.filterwarnings(*IGNORED)
def test_models_whose_forward_is_not_their_class_s():
    replaced = tanh_call()
    replaced.forward = lambda x: x.tanh()
    for model, why in (
        (torch.fx.symbolic_trace(Traced()), "is a script or a traced graph"),
        (torch.jit.script(Traced()), "is a script or a traced graph"),
        (replaced, "had its forward replaced"),
    ):
        with pytest.raises(ValueError, match=rf"own forward makes; got '\w+', which {why}: scale the model"):
            ss.scale_activations(model, functional=True)
        with pytest.raises(ValueError, match=why):
            ss.scale_activations(nn.Sequential(model), functional=True)


def test_folded():
    """fold() sees scaled calls as calls of sigscale's functions, methods as well."""

    def forward(m, x):
        return m.c(m.act(m.b(torch.tanh(m.a(x)))) + F.softsign(m.d(x.relu())).tanh())

    torch.manual_seed(0)
    x, parts = torch.randn(8, 4), {name: nn.Linear(4, 4) for name in "abcd"}
    for options in ({}, {"learnable": True}, {"exclude": "act"}):
        model = Forward(forward, act=nn.Tanh(), **copy.deepcopy(parts))
        plain = model(x)
        ss.scale_activations(model, functional=True, **options)
        if options.get("exclude"):
            with pytest.raises(ValueError, match="cannot fold"):
                ss.fold(model)
            continue
        folded = ss.fold(model, x)
        assert not torch.allclose(model(x), plain, atol=1e-4)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-6)
        assert not any(type(module).__module__.startswith("sigscale") for module in folded.modules())


def test_a_folded_model_whose_calls_were_none():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    ss.scale_activations(model, functional=True)
    folded = ss.fold(model, X.float())
    assert type(folded) is nn.Sequential
    assert b"sigscale" not in pickle.dumps(folded)


def test_a_monitor_of_a_model_with_scaled_calls():
    model = functional_model()
    with ss.GradientMonitor(model) as monitor:
        model(X).sum().backward()
        monitor.step()
    assert "tanh" in monitor.history().names
