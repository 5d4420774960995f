"""What `sigscale.nn.RNN`, `LSTM` and `GRU` are as modules: parameters, copies, conversions, errors."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import sigscale as ss
from sigscale.nn.recurrent import CACHE
from tests.oracles.cells import HIDDEN, INPUT, NAMES, inputs


def make(name, *args, of=ss.nn, **options):
    torch.manual_seed(0)
    return getattr(of, name)(*(args or (INPUT, HIDDEN, 2)), **options)


@pytest.mark.parametrize("name", NAMES)
class TestState:
    def test_state_dict_keys(self, name):
        module, stock = make(name), make(name, of=nn)
        assert [*module.state_dict()] == [*stock.state_dict()]
        for a, b in zip(module.parameters(), stock.parameters(), strict=True):
            assert torch.equal(a, b), "the same seed draws the same weights"
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        stock.load_state_dict(module.state_dict())
        other = make(name)
        other.load_state_dict(stock.state_dict())
        assert torch.equal(other(inputs())[0], module(inputs())[0])

    def test_learned_alpha_in_state_dict(self, name):
        module, other = make(name, alpha=1.5, learnable=True), make(name, learnable=True)
        assert set(module.state_dict()) - set(make(name).state_dict()) == {"log2_alpha"}
        other.load_state_dict(module.state_dict())
        assert other.alpha.item() == pytest.approx(1.5)
        with pytest.raises(RuntimeError, match="log2_alpha"):
            make(name, of=nn).load_state_dict(module.state_dict())

    def test_reset_parameters(self, name):
        module, weights = make(name, alpha=1.5, learnable=True), make(name, of=nn).state_dict()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(3.0)
        torch.manual_seed(0)
        module.reset_parameters()
        assert module.alpha.item() == pytest.approx(1.5)
        for key, weight in weights.items():
            assert torch.equal(module.state_dict()[key], weight)

    def test_alpha_can_be_set(self, name):
        module, x = make(name), inputs()
        for alpha in (0.5, 3.0, 1.0):
            module.alpha = alpha
            assert module.alpha == alpha
            assert torch.equal(module(x)[0], make(name, alpha=alpha)(x)[0])
        assert torch.equal(module(x)[0], make(name, of=nn)(x)[0])


@pytest.mark.parametrize(
    ("name", "learnable"), [("RNN", False), ("LSTM", False), ("LSTM", True), ("GRU", True)]
)
class TestCopies:
    def test_independent_copies(self, name, learnable):
        module, x = make(name, alpha=1.5, learnable=learnable), inputs()
        wanted = module(x)[0]
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
        for other in (*copies, torch.load(buffer, weights_only=False)):
            assert torch.equal(other(x)[0], wanted)
            other(x)[0].sum().backward()
            assert all(p.grad is None for p in module.parameters())
            nn.init.zeros_(other.weight_hh_l0)
            assert not torch.equal(other(x)[0], wanted)
        assert torch.equal(module(x)[0], wanted)

    def test_moved(self, name, learnable):
        module, x = make(name, alpha=1.5, learnable=learnable), inputs()
        wanted = module(x)[0]
        found = module.double()(x.double())[0]
        assert found.dtype is torch.float64
        torch.testing.assert_close(found.float(), wanted)
        assert torch.equal(module.float()(x)[0], wanted)
        assert make(name, alpha=1.5, learnable=learnable, device="meta")(x.to("meta"))[0].is_meta

    def test_from_and_to_pytorch_in_place(self, name, learnable):
        module, x = make(name, of=nn), inputs()
        weights, plain = [*module.parameters()], module(x)[0]
        module.__class__ = getattr(ss.nn, name)
        module.set_alpha(2.0, learnable=learnable)
        assert torch.equal(module(x)[0], make(name, learnable=learnable)(x)[0])
        assert all(a is b for a, b in zip(weights, module.parameters(), strict=False))
        del module._parameters["log2_alpha"], module._alpha
        module.__class__ = getattr(nn, name)
        assert vars(module).keys() == vars(make(name, of=nn)).keys()
        assert torch.equal(module(x)[0], plain)

    def test_other_weights_for_a_call(self, name, learnable):
        module, x = make(name, learnable=learnable), inputs()
        other = make(name, INPUT, HIDDEN, 2, learnable=learnable)
        nn.init.ones_(other.weight_ih_l0)
        wanted, before = other(x)[0], module(x)[0]
        found = torch.func.functional_call(module, dict(other.named_parameters()), (x,))[0]
        assert torch.equal(found, wanted)
        assert torch.equal(module(x)[0], before)


def test_cache_keeps_no_module_alive():
    module = make("LSTM")
    module(inputs())
    held = len(CACHE)
    assert module in CACHE
    del module
    assert len(CACHE) == held - 1


@pytest.mark.parametrize("name", NAMES)
def test_monitor(name):
    """Its parameters are measured; as a module it is no elementwise activation."""
    model = nn.ModuleList([make(name, learnable=True), ss.nn.Tanh(), nn.Linear(HIDDEN, 1)])
    with ss.GradientMonitor(model) as monitor:
        recurrent, activation, linear = model
        linear(activation(recurrent(inputs())[0])).sum().backward()
        monitor.step()
    history = monitor.history()
    assert {f"0.{key}" for key, _ in recurrent.named_parameters()} < set(history.names)
    assert [n for n, kind in zip(history.names, history.kinds, strict=True) if kind == "activation"] == ["1"]
    row = history.names.index("0.weight_hh_l0")
    median = recurrent.weight_hh_l0.grad.abs().median().item()
    assert history.quantile(0.5)[0, row] == pytest.approx(median, rel=0.15)


class TestErrors:
    @pytest.mark.parametrize(
        ("alpha", "error", "message"),
        [
            (0.0, ValueError, r"finite and > 0; got 0\.0"),
            (float("nan"), ValueError, "finite and > 0; got nan"),
            (torch.tensor(2.0), TypeError, r"got a tensor of shape \(\): pass alpha.item\(\)"),
            ("2", TypeError, "got '2' of type str: the paper's choice is 2.0"),
        ],
    )
    def test_alpha(self, alpha, error, message):
        with pytest.raises(error, match=message):
            ss.nn.GRU(2, 3, alpha=alpha)
        module = make("GRU", alpha=1.5)
        with pytest.raises(error, match=message):
            module.alpha = alpha
        with pytest.raises(error, match=message):
            module.set_alpha(alpha, learnable=True)
        assert module.alpha == 1.5
        assert not module.learnable

    @pytest.mark.parametrize("value", [40.0, -200.0, float("nan")])
    def test_diverged_alpha(self, value):
        layer = ss.nn.GRU(2, 3, learnable=True)
        with torch.no_grad():
            layer.log2_alpha.fill_(value)
        with pytest.raises(ValueError, match=r"between 2\^-36 and 2\^36; got .*with layer.reset_alpha"):
            layer(torch.randn(4, 1, 2))
        layer.reset_alpha()
        assert layer(torch.randn(4, 1, 2))[0].isfinite().all()

    def test_one_alpha(self):
        module = make("LSTM")
        with pytest.raises(ValueError, match=r"num_parameters must be 1 .* got 4: leave it out"):
            module.set_alpha(2.0, learnable=True, num_parameters=4)
        assert not module.learnable
        with pytest.raises(TypeError, match="num_parameters"):
            ss.nn.LSTM(2, 3, num_parameters=4)

    def test_relu_learns_no_alpha(self):
        with pytest.raises(ValueError, match=r"needs a tanh; got nonlinearity='relu'.*: leave learnable out"):
            ss.nn.RNN(2, 3, nonlinearity="relu", learnable=True)

    @pytest.mark.parametrize(
        "call",
        [
            lambda module: module(torch.randn(5, 3, 7)),
            lambda module: module(torch.randn(5)),
            lambda module: module(torch.randn(5, 3, 2).double()),
            lambda module: module(torch.randn(5, 3, 2), torch.randn(9, 9, 9)),
            lambda module: module(torch.randn(5, 3, 2), (torch.randn(1, 1), torch.randn(1, 1))),
            lambda module: type(module)(2, 3, dropout=2.0),
            lambda module: type(module)(2, 0),
            lambda module: type(module)(2, 3, proj_size=3),
            lambda module: type(module)(2, 3, nothing=3),
        ],
    )
    def test_those_of_pytorch_stay(self, call):
        for name in NAMES:
            messages = []
            for module in (make(name), make(name, of=nn)):
                with pytest.raises((ValueError, RuntimeError, TypeError, AttributeError)) as error:
                    call(module)
                messages.append((error.type, str(error.value)))
            assert messages[0] == messages[1]


def test_repr_shows_what_was_chosen():
    assert repr(ss.nn.LSTM(2, 5, proj_size=3)) == "LSTM(2, 5, proj_size=3, alpha=2.0)"
    assert repr(ss.nn.GRU(2, 3, bias=False, alpha=1.5, learnable=True)) == (
        "GRU(2, 3, bias=False, alpha=1.5, learnable=True)"
    )
    assert repr(ss.nn.RNN(2, 3, nonlinearity="relu")) == "RNN(2, 3, alpha=2.0 (no effect on relu))"
