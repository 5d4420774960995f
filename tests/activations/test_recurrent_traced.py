"""`sigscale.nn.RNN`, `LSTM` and `GRU` under export, tracing, compilation and torch.func, like torch.nn's."""

import io
import warnings

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call

import sigscale as ss
from tests.oracles import cells
from tests.oracles.cells import BATCH, HIDDEN, INPUT, LENGTH, NAMES, inputs

TRACES_VARS = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
    reason="torch 2.11 traces no vars() of a module, which have the rescaled weights",
)

pytestmark = [
    # PyTorch's own recurrent modules give rise to the same warnings.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning"),
]


class Head(nn.Module):
    """A recurrent module within another."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent
        self.linear = nn.Linear(HIDDEN, 2)

    def forward(self, x):
        return self.linear(self.recurrent(x)[0])


class HeadWithStates(Head):
    def forward(self, x, h):
        return self.linear(self.recurrent(x, hx=(h, 2 * h) if self.recurrent.mode == "LSTM" else h)[0])


AFFINE = cells.parametrized(cells.Affine, "weight_hh_l0")


def plain(module):
    return module


def hooked(module):
    module.register_forward_hook(lambda module, args, result: (2 * result[0], result[1]))
    return module


def make(name, of=ss.nn, **options):
    torch.manual_seed(0)
    return getattr(of, name)(INPUT, HIDDEN, 2, **options)


def outcome(call):
    """The type of the error that it raises, None if it raises none."""
    try:
        call()
    except Exception as error:
        return type(error)
    return None


def same(found, wanted):
    torch.testing.assert_close(found, wanted)


PREPARED = [
    *(("LSTM", plain, True), ("LSTM", AFFINE, False), ("GRU", hooked, False)),
    *(("RNN", cells.in_one_buffer, True), ("LSTM", cells.in_one_buffer, False)),
    *(("GRU", plain, False), ("RNN", cells.pruned, False)),
]


@TRACES_VARS
@pytest.mark.parametrize(("name", "prepare", "learnable"), PREPARED[:4])
@pytest.mark.works_with("torch.export", "recurrent")
def test_strict_export(name, prepare, learnable):
    module, x = Head(prepare(make(name, alpha=1.7, learnable=learnable))), inputs()
    batch = {1: torch.export.Dim("batch")}
    exported = torch.export.export(module, (x,), dynamic_shapes=(batch,), strict=True).module()
    for x in (inputs(), inputs(LENGTH, 2, INPUT)):
        same(exported(x), module(x))
    module(x).sum().backward()


@pytest.mark.parametrize(("name", "prepare", "learnable"), PREPARED)
class TestGraphs:
    @pytest.mark.works_with("jit.trace", "recurrent")
    def test_jit_trace(self, name, prepare, learnable):
        """The first call is traced, before anything can be cached; the traced module has the parameters."""
        module = Head(prepare(make(name, alpha=1.7, learnable=learnable)))
        traced = torch.jit.trace(module, (inputs(),))
        with torch.no_grad():
            for p in module.recurrent.parameters():
                p.mul_(1.25)
            for p in module.recurrent.buffers():
                p.fill_(1.0)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        buffer.seek(0)
        for each in (traced, torch.jit.load(buffer)):
            same(each(inputs(LENGTH, 2, INPUT)), module(inputs(LENGTH, 2, INPUT)))

    @pytest.mark.works_with("fx", "recurrent")
    def test_fx(self, name, prepare, learnable):
        """A leaf, as PyTorch's modules are."""
        module = Head(prepare(make(name, alpha=1.7, learnable=learnable)))
        traced, stock = fx.symbolic_trace(module), fx.symbolic_trace(Head(prepare(make(name, of=nn))))
        assert [(n.op, n.target) for n in traced.graph.nodes] == [(n.op, n.target) for n in stock.graph.nodes]
        same(traced(inputs()), module(inputs()))
        x, h = inputs(), torch.randn(2, BATCH, HIDDEN)
        module = HeadWithStates(module.recurrent)
        same(fx.symbolic_trace(module)(x, h), module(x, h))

    @pytest.mark.works_with("func.grad, jvp, hessian", "recurrent")
    def test_func(self, name, prepare, learnable):
        module, x = prepare(make(name, alpha=1.7, learnable=learnable)), inputs()
        names, parameters = zip(*module.named_parameters(), strict=True)
        wanted = torch.autograd.grad(module(x)[0].sum(), parameters)

        def loss(parameters):
            return functional_call(module, parameters, (x,))[0].sum()

        found = torch.func.grad(loss)({n: p.detach() for n, p in module.named_parameters()})
        same(tuple(found[n] for n in names), wanted)
        same(tuple(p.grad for p in module.parameters()), (None,) * len(names))
        same(module(x)[0], functional_call(module, dict(module.named_parameters()), (x,))[0])


@pytest.mark.parametrize(
    ("name", "prepare", "learnable"),
    [
        ("LSTM", plain, True),
        ("LSTM", AFFINE, False),
        ("GRU", plain, False),
        ("RNN", AFFINE, True),
    ],
)
class TestCompiled:
    @pytest.mark.works_with("torch.compile", "recurrent")
    def test_compile(self, name, prepare, learnable):
        torch.compiler.reset()
        model, x = Head(prepare(make(name, alpha=1.7, learnable=learnable))), inputs()
        compiled, parameters = torch.compile(model, backend="aot_eager"), [*model.parameters()]
        for _ in range(2):
            found = torch.autograd.grad(compiled(x).sum(), parameters)
            same(found, torch.autograd.grad(model(x).sum(), parameters))
            same(compiled(x), model(x))
            with torch.no_grad():
                for p in parameters:
                    p.mul_(1.25)

    @TRACES_VARS
    @pytest.mark.works_with("torch.compile", "recurrent")
    def test_one_graph_where_pytorch_allows_it(self, name, prepare, learnable):
        """Which is in evaluation, without gradients; PyTorch's own LSTM fails to compile its backward."""
        torch.compiler.reset()
        model, x = Head(prepare(make(name, alpha=1.7, learnable=learnable))), inputs()
        with torch._dynamo.config.patch(allow_rnn=True), torch.no_grad():
            same(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize(
    ("name", "strict"), [pytest.param("LSTM", True, marks=TRACES_VARS), *((name, False) for name in NAMES)]
)
def test_export_with_states(name, strict):
    module, x, h = HeadWithStates(make(name, alpha=1.7)), inputs(), torch.randn(2, BATCH, HIDDEN)
    same(torch.export.export(module, (x, h), strict=strict).module()(x, h), module(x, h))
    module(x, h).sum().backward()


@pytest.mark.parametrize("name", NAMES)
class TestAsTheTwin:
    def modules(self, name):
        return make(name, of=nn), make(name, alpha=1.7), make(name, alpha=1.7, learnable=True)

    @pytest.mark.parametrize(
        "call",
        [
            lambda module, x: fx.symbolic_trace(module),
            lambda module, x: torch.compile(Head(module), backend="eager", fullgraph=True)(x),
            lambda module, x: torch.func.vmap(lambda x: module(x)[0])(x[None]),
            lambda module, x: torch.func.jvp(lambda x: module(x)[0], (x,), (x,)),
            lambda module, x: torch.func.jacrev(lambda x: module(x)[0].sum((0, 1)))(x),
        ],
        ids=["fx of the module alone", "fullgraph", "vmap", "jvp", "jacrev"],
    )
    @pytest.mark.works_with("forward AD", "recurrent", says="as PyTorch's")
    def test_outcome(self, name, call):
        torch.compiler.reset()
        assert len({outcome(lambda m=m: call(m, inputs())) for m in self.modules(name)}) == 1

    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    @pytest.mark.works_with("vmap, is_grads_batched", "recurrent", says="LSTM, as PyTorch's")
    def test_gradients_of_each_sample(self, name):
        x = inputs()
        for module in self.modules(name):
            parameters = {n: p.detach() for n, p in module.named_parameters()}

            def loss(parameters, x, module=module):
                return functional_call(module, parameters, (x[:, None],))[0].sum()

            if name != "LSTM":
                with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
                    torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, x)
                continue
            found = torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, x)
            for i in range(BATCH):
                same({n: g[i] for n, g in found.items()}, torch.func.grad(loss)(parameters, x[:, i]))

    @pytest.mark.filterwarnings("default::torch.jit.TracerWarning")
    def test_warnings_of_a_trace(self, name):
        places = []
        for module in self.modules(name)[:2]:
            cells.put_into_one_buffer(module)
            with warnings.catch_warnings(record=True) as caught:
                torch.jit.trace(module, (inputs(),))
            places.append({(w.category, w.filename, w.lineno) for w in caught})
        assert places[1] == places[0]

    @pytest.mark.works_with("jit.script", "recurrent", says="refused")
    def test_script(self, name):
        model = Head(make(name, alpha=1.7))
        with pytest.raises(
            TypeError, match=rf"{name}\(alpha=.*use torch.export.export or torch.jit.trace, or"
        ):
            torch.jit.script(model)
        assert type(model.recurrent) is getattr(ss.nn, name)

    def test_script_of_a_folded_model(self, name):
        model = Head(make(name, alpha=1.7))
        same(torch.jit.script(ss.fold(model))(inputs()), model(inputs()))
