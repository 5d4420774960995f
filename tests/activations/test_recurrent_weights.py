"""`sigscale.nn.RNN`, `LSTM` and `GRU` compute with the weights that they have at the time of the call.

Whatever replaces or recomputes weights is followed by the formulas on the weights that the module then has.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sigscale as ss
from tests.oracles import cells

LENGTH, BATCH, INPUT, HIDDEN = 5, 3, 2, 4


class Affine(nn.Module):
    def forward(self, weight):
        return 1.5 * weight + 0.1


class Dropped(nn.Module):
    """Other values at each access."""

    def forward(self, weight):
        return nn.functional.dropout(weight, 0.5)


class WeightDropping(nn.Module):
    """Sets a weight to another tensor before each call, as fastai's AWD-LSTM does."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        del module.weight_hh_l0
        self.set_weight()

    def set_weight(self):
        self.module.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5)

    def forward(self, *args):
        self.set_weight()
        return self.module(*args)


def make(name, *args, of=ss.nn, **options):
    torch.manual_seed(0)
    if of is ss.nn:
        options = {"alpha": 1.7, **options}
    return getattr(of, name)(*(args or (INPUT, HIDDEN)), **{"dtype": torch.float64, **options})


def inputs(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (LENGTH, BATCH, INPUT)), generator=generator, dtype=torch.float64)


def zeros(module, batch=BATCH):
    count = module.num_layers * (1 + module.bidirectional)
    h = torch.zeros(count, batch, module.proj_size or module.hidden_size, dtype=torch.float64)
    return (h, h.new_zeros(count, batch, module.hidden_size)) if module.mode == "LSTM" else (h,)


def expected(module, x, *args, **options):
    return cells.run(module, x, zeros(module, x.shape[1]), module.alpha, *args, **options)[0]


def parametrized(parametrization, *names):
    def change(module):
        for name in names or [*module._flat_weights_names]:
            parametrize.register_parametrization(module, name, parametrization())
        return module

    return change


def stacked(module):
    return parametrized(Affine, "weight_hh_l0")(parametrizations.weight_norm(module, "weight_hh_l0"))


def old_spectral_norm(module):
    return nn.utils.spectral_norm(module, "weight_hh_l0").eval()


def new_spectral_norm(module):
    return parametrizations.spectral_norm(module, "weight_hh_l0").eval()


def pruned(module):
    return prune.random_unstructured(module, "weight_hh_l0", 0.5)


def dropped(module):
    return WeightDropping(module).module


def assigned(module):
    state = {key: 1.5 * value for key, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


def emptied(module):
    state = module.state_dict()
    module = module.to("meta").to_empty(device="cpu")
    module.load_state_dict(state)
    return module


def swapped(module):
    """As `Module.to` does where it is told to keep the parameters."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.float().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def replaced(module):
    module.weight_hh_l0 = nn.Parameter(2 * module.weight_hh_l0.detach())
    module._parameters["weight_ih_l0"] = nn.Parameter(2 * module.weight_ih_l0.detach())
    module.bias_ih_l0.data = torch.ones_like(module.bias_ih_l0)
    return module


def replica(module):
    """As nn.DataParallel makes one for each GPU."""
    made = module._replicate_for_data_parallel()
    for key, parameter in module._parameters.items():
        if parameter is None:
            made._parameters[key] = None
        else:
            setattr(made, key, parameter * 1.0)
    return made


REPLACEMENTS = {
    "weight norm": lambda module: parametrizations.weight_norm(module, "weight_hh_l0"),
    "weight norm of the first": lambda module: parametrizations.weight_norm(module, "weight_ih_l0"),
    "orthogonal": lambda module: parametrizations.orthogonal(module, "weight_hh_l0"),
    "spectral norm": new_spectral_norm,
    "all parametrized": parametrized(Affine),
    "a bias parametrized": parametrized(Affine, "bias_hh_l0"),
    "stacked parametrizations": stacked,
    "old spectral norm": old_spectral_norm,
    "old weight norm": pytest.param(
        lambda module: nn.utils.weight_norm(module, "weight_hh_l0"),
        marks=pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning"),
    ),
    "pruned": pruned,
    "dropped": dropped,
    "assigned": assigned,
    "emptied": emptied,
    "swapped": swapped,
    "replaced": replaced,
    "replica": replica,
    "deepcopy": copy.deepcopy,
    "deepcopy of parametrized": lambda module: copy.deepcopy(parametrized(Affine)(module)),
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "converted": lambda module: module.half().to(torch.float64),
    "shared memory": lambda module: module.share_memory(),
}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
@pytest.mark.parametrize(
    ("name", "learnable", "called_before"),
    [("LSTM", False, True), ("GRU", False, False), ("RNN", True, True)],
)
def test_replaced_weights(name, replace, learnable, called_before):
    """Values and gradients, again after a step of an optimizer, and without gradients."""
    module, x = make(name, learnable=learnable), inputs()
    if called_before:
        module(x)
    module = replace(module)
    x.requires_grad_()
    parameters = [p for p in module.parameters() if p.requires_grad]
    leaves = [x, *(parameters or [getattr(module, n) for n in module._flat_weights_names])]
    for _ in range(2):
        output, wanted = module(x)[0], expected(module, x)
        torch.testing.assert_close(output, wanted)
        weight = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
        found = torch.autograd.grad((output * weight).sum(), leaves, allow_unused=True, retain_graph=True)
        for a, b in zip(
            found, torch.autograd.grad((wanted * weight).sum(), leaves, allow_unused=True), strict=True
        ):
            torch.testing.assert_close(a, b)
        if not parameters:
            break
        for p, g in zip(parameters, found[1:], strict=True):
            p.grad = g
        torch.optim.SGD(parameters, lr=0.1).step()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(module(x)[0], expected(module, x))


@pytest.mark.parametrize("replace", [parametrized(Affine), pruned])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"proj_size": 3, "bidirectional": True, "num_layers": 2}),
        ("LSTM", {"proj_size": 3, "bias": False}),
        ("LSTM", {"num_layers": 3, "batch_first": True}),
        ("GRU", {"bidirectional": True, "num_layers": 2}),
        ("GRU", {"bias": False}),
        ("RNN", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ],
)
def test_shapes(name, options, replace):
    module, x = replace(make(name, **options)), inputs()
    swap = (lambda t: t.transpose(0, 1)) if module.batch_first else (lambda t: t)
    torch.testing.assert_close(swap(module(swap(x))[0]), expected(module, x))


@pytest.mark.parametrize(
    ("name", "replace"), [("RNN", dropped), ("LSTM", parametrized(Affine)), ("GRU", pruned)]
)
class TestCalls:
    def test_packed(self, name, replace):
        module, lengths = replace(make(name, num_layers=2, bidirectional=True)), [2, 5, 3]
        packed = pack_padded_sequence(inputs(), torch.tensor(lengths), enforce_sorted=False)
        found = pad_packed_sequence(module(packed)[0])[0]
        torch.testing.assert_close(found, expected(module, inputs(), lengths))

    def test_unbatched(self, name, replace):
        module, x = replace(make(name)), inputs(LENGTH, INPUT)
        torch.testing.assert_close(module(x)[0], expected(module, x[:, None])[:, 0])

    def test_states(self, name, replace):
        module, x = replace(make(name)), inputs()
        states = tuple(torch.randn_like(state) for state in zeros(module))
        output, final = module(x, states if name == "LSTM" else states[0])
        wanted, last = cells.run(module, x, states, module.alpha)
        torch.testing.assert_close(output, wanted)
        torch.testing.assert_close(final if name == "LSTM" else (final,), last)

    def test_dropout_between_layers(self, name, replace):
        module, x = replace(make(name, num_layers=2, dropout=0.5)).train(), inputs()
        module(x)
        torch.manual_seed(1)
        found = module(x)[0]
        torch.manual_seed(1)
        wanted = expected(module, x, dropout=lambda x: nn.functional.dropout(x, 0.5, module.training))
        torch.testing.assert_close(found, wanted)
