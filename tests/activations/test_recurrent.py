"""`sigscale.nn.RNN`, `LSTM` and `GRU` compute what their formulas say, and gradients of everything.

Whatever replaces or recomputes weights is followed by the formulas on the weights that the module then has.
"""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import sigscale as ss
from sigscale.nn.recurrent import pieces_of_buffer, rescaled
from tests.oracles import cells
from tests.oracles.cells import BATCH, HIDDEN, INPUT, LENGTH, NAMES, put_into_one_buffer


def unchanged(module):
    return module


def seeded(name, *args, scale=2.0, **options):
    """A module of fp64 whose weights are large enough that the cells saturate."""
    torch.manual_seed(0)
    options = {"dtype": torch.float64, **options}
    module = getattr(ss.nn, name)(*(args or (INPUT, HIDDEN)), **options)
    with torch.no_grad():
        for weight in module._flat_weights:
            weight.mul_(scale)
    return module


def states_of(module, batch=BATCH):
    count, hidden = module.num_layers * (1 + module.bidirectional), module.hidden_size
    sizes = (module.proj_size or hidden, hidden) if module.mode == "LSTM" else (hidden,)
    device = module.weight_ih_l0.device
    return tuple(torch.randn(count, batch, size, dtype=torch.float64, device=device) for size in sizes)


def as_hx(states):
    return states if len(states) == 2 else states[0]


def call(module, x, states=None):
    """Output and a tuple of final states."""
    output, final = module(x) if states is None else module(x, as_hx(states))
    return output, final if isinstance(final, tuple) else (final,)


def weighted(output, states):
    """A number that depends on every coordinate."""
    coordinates = torch.cat([t.reshape(-1) for t in (output, *states)])
    return (torch.linspace(-1, 2, len(coordinates)).to(coordinates) * coordinates).sum()


def assert_same(found, wanted, **tolerances):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerances)


@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first", "bias"),
    [
        (1, False, False, True),
        (1, True, True, False),
        (2, False, True, True),
        (2, True, False, True),
        (3, True, True, True),
        (3, False, False, False),
    ],
)
@pytest.mark.parametrize(
    ("name", "projection"), [("RNN", {}), ("LSTM", {}), ("LSTM", {"proj_size": 3}), ("GRU", {})]
)
def test_against_the_cells(name, projection, layers, bidirectional, batch_first, bias, device):
    """Values, and the gradients of inputs, states, weights and alpha, in fp64."""
    options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    for alpha, learnable, replace, from_zero in (
        (1.7, False, cells.in_one_buffer if device == "cpu" else unchanged, False),
        (0.6, True, unchanged, True),
        (1.7, False, cells.parametrized(cells.Affine), True),
    ):
        module = replace(
            seeded(name, alpha=alpha, learnable=learnable, device=device, **options, **projection)
        )
        x = torch.randn(LENGTH, BATCH, INPUT, dtype=torch.float64, device=device, requires_grad=True)
        states = tuple(state.requires_grad_() for state in states_of(module))
        given = tuple(map(torch.zeros_like, states)) if from_zero else states
        output, final = call(module, x.transpose(0, 1) if batch_first else x, None if from_zero else states)
        output = output.transpose(0, 1) if batch_first else output
        wanted = cells.run(module, x, given, module.alpha)
        assert_same((output, *final), (wanted[0], *wanted[1]))

        leaves = [x, *(() if from_zero else states), *module.parameters()]
        found = torch.autograd.grad(weighted(output, final), leaves)
        assert_same(found, torch.autograd.grad(weighted(*wanted), leaves))


@pytest.mark.parametrize(
    ("name", "alpha", "options"),
    [*((name, 1.0, {}) for name in NAMES), ("RNN", 2.0, {"nonlinearity": "relu"})],
)
def test_alpha_1_and_relu_bits(name, alpha, options, device):
    x = torch.randn(LENGTH, BATCH, INPUT, device=device)
    module = getattr(ss.nn, name)(INPUT, HIDDEN, 2, alpha=alpha, device=device, **options)
    stock = getattr(torch.nn, name)(INPUT, HIDDEN, 2, device=device, **options)
    stock.load_state_dict(module.state_dict())
    (output, states), (wanted, final) = call(module, x), call(stock, x)
    assert_same((output, *states), (wanted, *final), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(name, dtype, device):
    """As close to the fp64 formulas as PyTorch's own cells are to theirs, times a small factor."""
    module = seeded(name, INPUT, 16, 2, alpha=1.7, scale=1.0, device=device)
    low = getattr(ss.nn, name)(INPUT, 16, 2, alpha=1.7, device=device, dtype=dtype)
    low.load_state_dict(module.state_dict())
    module.load_state_dict(low.state_dict())
    x = torch.randn(LENGTH, BATCH, INPUT, dtype=dtype, device=device)
    found, wanted = low(x)[0], module(x.double())[0]
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
def test_power_of_two_alpha_bits(name):
    module = getattr(ss.nn, name)(INPUT, HIDDEN, 2, dtype=torch.bfloat16)
    for found, weight in zip(rescaled(module, 2.0), module._flat_weights, strict=True):
        ratios = (found.double() / weight.double())[weight != 0]
        assert set(ratios.unique().tolist()) <= {0.5, 1.0, 2.0}


# As they are, and with weights that are computed or set anew.
REPLACED = [*((name, unchanged) for name in NAMES)]
REPLACED += [("RNN", cells.dropped), ("LSTM", cells.parametrized(cells.Affine)), ("GRU", cells.pruned)]


@pytest.mark.parametrize(("name", "replace"), REPLACED)
class TestShapes:
    def test_packed(self, name, replace, device):
        module = replace(seeded(name, INPUT, HIDDEN, 2, bidirectional=True, device=device))
        x = torch.randn(LENGTH, 3, INPUT, dtype=torch.float64, device=device)
        lengths, states = [2, 5, 3], states_of(module)
        for given_states in (states, None):
            packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
            output, final = call(module, packed, given_states)
            assert isinstance(output, PackedSequence)
            zeros = tuple(map(torch.zeros_like, states))
            wanted = cells.run(module, x, given_states or zeros, 2.0, lengths)
            assert_same((pad_packed_sequence(output)[0], *final), (wanted[0], *wanted[1]))

    def test_unbatched(self, name, replace):
        module = replace(seeded(name, num_layers=2))
        x, states = torch.randn(LENGTH, INPUT, dtype=torch.float64), states_of(module, 1)
        output, final = call(module, x, tuple(state[:, 0] for state in states))
        wanted = cells.run(module, x[:, None], states, 2.0)
        assert_same((output, *final), (wanted[0][:, 0], *(state[:, 0] for state in wanted[1])))

    def test_dropout_between_layers(self, name, replace):
        module = replace(seeded(name, num_layers=3, dropout=0.5))
        x, states = torch.randn(LENGTH, BATCH, INPUT, dtype=torch.float64), states_of(module)
        for training in (True, False):
            module.train(training)
            call(module, x, states)
            torch.manual_seed(1)
            output, final = call(module, x, states)
            torch.manual_seed(1)
            wanted = cells.run(module, x, states, 2.0, dropout=lambda x: F.dropout(x, 0.5, module.training))
            assert_same((output, *final), (wanted[0], *wanted[1]))

    def test_states_go_on_where_they_ended(self, name, replace):
        module = replace(seeded(name, num_layers=2))
        x = torch.randn(LENGTH, BATCH, INPUT, dtype=torch.float64)
        first, middle = call(module, x[:2])
        second, final = call(module, x[2:], middle)
        wanted = call(module, x)
        assert_same((torch.cat([first, second]), *final), (wanted[0], *wanted[1]))


@pytest.mark.parametrize("replace", cells.REPLACEMENTS.values(), ids=cells.REPLACEMENTS)
@pytest.mark.parametrize(
    ("name", "learnable", "called_before"),
    [("LSTM", False, True), ("GRU", False, False), ("RNN", True, True)],
)
def test_replaced_weights(name, replace, learnable, called_before):
    """Values and gradients, again after a step of an optimizer, and without gradients."""
    module, x = seeded(name, alpha=1.7, learnable=learnable, scale=1.0), cells.inputs(dtype=torch.float64)
    states = tuple(map(torch.zeros_like, states_of(module)))
    if called_before:
        module(x)
    module = replace(module)
    x.requires_grad_()
    parameters = [p for p in module.parameters() if p.requires_grad]
    leaves = [x, *(parameters or [getattr(module, n) for n in module._flat_weights_names])]
    for _ in range(2):
        output, wanted = module(x)[0], cells.run(module, x, states, module.alpha)[0]
        torch.testing.assert_close(output, wanted)
        found, gradients = (
            torch.autograd.grad(weighted(y, ()), leaves, allow_unused=True, retain_graph=True)
            for y in (output, wanted)
        )
        torch.testing.assert_close(found, gradients)
        if not parameters:
            break
        for p, g in zip(parameters, found[1:], strict=True):
            p.grad = g
        torch.optim.SGD(parameters, lr=0.1).step()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(module(x)[0], cells.run(module, x, states, module.alpha)[0])


@pytest.mark.parametrize("name", NAMES)
class TestGradients:
    @pytest.mark.parametrize("order", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
    def test_gradcheck(self, name, order):
        """Of the second order as well, which PyTorch's cells have in fp64 on the CPU, not through cuDNN."""
        module = seeded(name, 2, 2, learnable=True)
        module.log2_alpha.data.fill_(0.7)
        names = [n for n, _ in module.named_parameters()]
        x = torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True)

        def output(x, *parameters):
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))[0]

        assert order(output, (x, *(p.detach().clone().requires_grad_() for p in module.parameters())))

    def test_learned_alpha_with_frozen_weights(self, name):
        module = seeded(name, learnable=True)
        for weight in module._flat_weights:
            weight.requires_grad_(False)
        module(torch.randn(LENGTH, BATCH, INPUT, dtype=torch.float64))[0].square().sum().backward()
        assert module.log2_alpha.grad.abs() > 0
        assert module.weight_ih_l0.grad is None

    def test_inference_mode_first(self, name):
        """What a call in inference mode leaves behind does not stop training, nor what torch.func leaves."""
        module = seeded(name, alpha=1.5)
        x = torch.randn(LENGTH, BATCH, INPUT, dtype=torch.float64)
        with torch.inference_mode():
            module(x)
        fresh = seeded(name, alpha=1.5)
        torch.func.grad(torch.func.grad(lambda s: fresh(s * x)[0].sum()))(x.new_ones(()))
        torch.func.grad(lambda x: fresh(x)[0].sum())(x)
        for each in (module, fresh):
            each(x)[0].sum().backward()
        assert torch.equal(module.weight_ih_l0.grad, fresh.weight_ih_l0.grad)
        with torch.no_grad():
            assert not module(x)[0].requires_grad

    def test_autocast(self, name, device):
        module = seeded(name, INPUT, 16, scale=1.0, dtype=torch.float32, device=device, learnable=True)
        x = torch.randn(LENGTH, BATCH, INPUT, device=device)
        stock = getattr(torch.nn, name)(INPUT, 16, device=device)
        with torch.autocast(device, torch.bfloat16):
            try:
                plain = stock(x)[0]
            except RuntimeError as error:  # oneDNN's LSTM on processors without bfloat16
                pytest.skip(str(error))
            found = module(x)[0]
        assert found.dtype is plain.dtype
        torch.testing.assert_close(found.float(), module(x)[0], rtol=0, atol=0.05)
        found.float().sum().backward()
        assert all(p.grad.dtype is torch.float32 for p in module.parameters())


class TestBuffer:
    def test_memory_layout_of_rescaled_weights(self):
        module = seeded("LSTM", num_layers=2, alpha=1.5, dtype=torch.float32)
        expected = [weight.clone() for weight in rescaled(module, 1.5)]
        buffer = put_into_one_buffer(module)
        found = rescaled(module, 1.5)
        assert_same(found, expected, rtol=0, atol=0)
        storage = found[0].untyped_storage()
        assert storage.data_ptr() != buffer.untyped_storage().data_ptr()
        assert storage.nbytes() == buffer.untyped_storage().nbytes()
        assert {weight.untyped_storage().data_ptr() for weight in found} == {storage.data_ptr()}
        for weight, parameter in zip(found, module._flat_weights, strict=True):
            assert weight.storage_offset() == parameter.storage_offset()
            assert weight.is_contiguous()
        whole = torch.empty(0).set_(storage)
        assert not whole[:3].any()
        assert not whole[-3:].any()

    def test_foreign_buffers(self):
        module = seeded("GRU", dtype=torch.float32)
        assert pieces_of_buffer(module._flat_weights) is None
        put_into_one_buffer(module, gap=1000)
        assert pieces_of_buffer(module._flat_weights) is None
        put_into_one_buffer(module)
        assert pieces_of_buffer(module._flat_weights) is not None
        assert pieces_of_buffer([module.bias_ih_l0, module.bias_ih_l0]) is None
        assert pieces_of_buffer(module.to("meta")._flat_weights) is None

    @pytest.mark.gpu
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("bias", [True, False])
    def test_cudnn_finds_one_buffer(self, name, bias, recwarn):
        module = getattr(ss.nn, name)(8, 16, 2, bias=bias, bidirectional=True, device="cuda")
        assert pieces_of_buffer(module._flat_weights) is not None
        module(torch.randn(LENGTH, BATCH, 8, device="cuda"))[0].sum().backward()
        assert not [w for w in recwarn if "contiguous chunk" in str(w.message)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_in_a_cuda_graph(name):
    module = getattr(ss.nn, name)(8, 16, 2, device="cuda")
    x = torch.randn(LENGTH, BATCH, 8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        module(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = module(x)[0]
    module.alpha = 3.0
    module(x)
    graph.replay()
    module.alpha = 2.0
    torch.testing.assert_close(output, module(x)[0])
