"""The end of a monitored step: the kernel against its twin, interpreted, as PTX, and as machine code."""

from __future__ import annotations

import pytest
import torch

from sigscale import FUNCTIONS
from sigscale.kernels import activation, learned, multi_tensor, record, sketch, summary
from sigscale.kernels._triton import INTERPRETED
from sigscale.kernels.record import Layout
from sigscale.kernels.reference_sketch import bin_count

LAYOUTS = (Layout(6, 2, 4), Layout(3, 1, 3), Layout(3, 1, 1), Layout(4, 2, 4))
SLOTS, EVERY = 3, 2
Q, THRESHOLDS = torch.tensor([0.05, 0.5]).double(), torch.tensor([1e-3]).double()


def records(layout: Layout, m: int, device: str = "cpu") -> record.Records:
    """In the middle of the first step, with room for one row more."""
    generator, shape = torch.Generator().manual_seed(0), (layout.rows + 1, bin_count(m))
    counts = torch.randint(0, 5, shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.1)
    counts[: layout.totals] = 0
    ring = torch.full((SLOTS, layout.rows + 1, 5 + len(Q) + len(THRESHOLDS)), torch.nan).double()
    ticket = torch.zeros(record.HEAD + SLOTS, dtype=torch.int64)
    ticket[record.ON] = 1
    made = counts, torch.zeros_like(counts), torch.ones(layout.rows + 1).double(), ring, ticket
    return record.Records(*(tensor.to(device) for tensor in made))


def wanted(m: int, magnitude: bool, every: int, device: str = "cpu") -> record.Wanted:
    return record.Wanted(Q.to(device), THRESHOLDS.to(device), m, magnitude, every)


def assert_alike(layout: Layout, m: int, magnitude: bool, device: str = "cpu", steps: int = 7) -> None:
    """Over steps that are measured, or not, and after the fourth paused."""
    ours, theirs = records(layout, m, device), records(layout, m)
    full = ours.counts.clone()
    factors = torch.arange(1, layout.rows + 1).double()
    for step in range(steps):
        record.finish(ours, factors.to(device), layout, wanted(m, magnitude, EVERY, device))
        record.finish_plainly(theirs, factors, layout, wanted(m, magnitude, EVERY))
        for mine, its in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.cpu(), its, rtol=1e-14, atol=0, equal_nan=True)
        assert bool(ours.counts[: layout.rows].any()) == (step not in (0, 2))
        if step == 3:
            for ticket in (ours.ticket, theirs.ticket):
                ticket[record.ON], ticket[record.PAUSED] = 0, 1
        ours.counts.copy_(full)
        theirs.counts.copy_(full)


@pytest.mark.interpreter(m=[2])
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_finish(layout, m, magnitude, device):
    assert_alike(layout, m, magnitude, device)


def test_totals_and_order(device):
    """By hand: sums of rows, the slot, the number of its step, what is cleared, and what comes next."""
    there = records(LAYOUTS[0], 3, device)
    before = there.counts.clone()
    there.ticket[record.CALLS], there.ticket[record.MADE] = 6, 4
    record.finish(there, there.scale, LAYOUTS[0], wanted(3, True, 3, device))
    assert torch.equal(there.last[0], before[2:4].sum(0))
    assert torch.equal(there.last[1], before[4:6].sum(0))
    assert torch.equal(there.last[2:6], before[2:6])
    assert not there.counts[:6].any()
    assert torch.equal(there.counts[6], before[6])
    assert there.ring[1, :6, 0].tolist() == there.last[:6].sum(1).tolist()
    assert there.ring[[0, 2]].isnan().all()
    assert there.ticket.tolist() == [0, 0, 7, 5, 0, 0, 0, 0, 0, 6, 0]


def assert_switch(device: str = "cpu") -> None:
    """All that count do so while the switch is on, and compute the gradient in any case."""
    tanh, n = FUNCTIONS["tanh"], 5001
    x, g = (torch.randn(n, generator=torch.Generator().manual_seed(s)).to(device) for s in (0, 1))
    alpha = torch.tensor([1.5], device=device)
    for on in (0, 1):
        counts = torch.zeros(4, bin_count(3), dtype=torch.int64, device=device)
        counted = [{"counts": row, "on": torch.tensor([on, 7], device=device)} for row in counts]
        dx = activation.backward(tanh, g, x, 1.5, from_output=False, **counted[0])
        both = learned.backward(tanh, g, x, alpha, dx=True, dalpha=True, **counted[1])
        sketch.count(counts[2], g, 3, counted[2]["on"])
        sketch.count_many(counts, [3], [g], 3, counted[3]["on"])
        assert counts.sum(1).tolist() == [on * n] * 4
        plain = learned.backward(tanh, g, x, alpha, dx=True, dalpha=True)
        torch.testing.assert_close(both, plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dx, activation.backward(tanh, g, x, 1.5, from_output=False))


@pytest.mark.interpreter
def test_switch(device):
    assert_switch(device)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
class TestCompiled:
    @pytest.fixture
    def ran(self, monkeypatch):
        pytest.importorskip("triton")
        from tests.oracles import emulated

        return emulated.use(monkeypatch)

    def test_ptx(self, ran):
        for magnitude in (True, False):
            assert_alike(LAYOUTS[0], 3, magnitude, steps=2)
        assert ran == ["finish_kernel"] * 4

    def test_switch(self, ran):
        assert_switch()
        assert {"backward_sketch_kernel", "sketch_kernel", "multi_sketch_kernel"} <= set(ran)

    def test_nothing_is_read_for_a_step_that_does_not_count(self, ran, monkeypatch):
        monkeypatch.setattr(multi_tensor, "addresses", lambda tensors, device: torch.tensor([64]))
        counts = torch.zeros(1, bin_count(3), dtype=torch.int64)
        sketch.count_many(counts, [0], [torch.ones(3000)], 3, torch.tensor([0]))
        with pytest.raises(AssertionError, match="beyond all tensors"):
            sketch.count_many(counts, [0], [torch.ones(3000)], 3, torch.tensor([1]))

    @pytest.mark.parametrize("target", ["sm_80", "gfx942"])
    @pytest.mark.parametrize("m", [3, 5])
    def test_compiles(self, target, m):
        assert binary(m, True, target).kernel[:4] == b"\x7fELF"

    @pytest.mark.parametrize(("m", "magnitude"), [(2, False), (3, True), (3, False), (5, True), (5, False)])
    def test_on_hopper(self, m, magnitude):
        pytest.importorskip("triton")
        from tests.oracles import sass

        program = sass.disassemble(binary(m, magnitude, "sm_90").asm["cubin"])
        opcodes = [opcode for _, opcode, _ in program.values()]
        print(f"finish, m={m}, magnitude={magnitude}: {len(opcodes)} instructions")
        assert not [op for op in opcodes if op.startswith(("LDL", "STL"))], "local memory"
        assert len(opcodes) <= 3100  # with a summary of its own for totals, up to 5208


def binary(m, magnitude, target):
    """The kernel as its launcher would compile it."""
    from tests.oracles import sass

    pointers = {name: "*fp64" for name in record.finish_kernel.arg_names if name.endswith("_ptr")}
    pointers |= dict.fromkeys(("last_ptr", "ticket_ptr", "counts_ptr"), "*i64")
    width, warps = summary.extent(summary.edges(m, magnitude=magnitude)[0])
    constants = {"M": m, "MAGNITUDE": magnitude, "K": 5, "T": 1, "WIDTH": width}
    return sass.compiled(record.finish_kernel, target, warps, pointers, constants)
