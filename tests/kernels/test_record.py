"""The end of a monitored step: the kernel against its twin, interpreted, as PTX, and as machine code."""

from __future__ import annotations

import pytest
import torch

from sigscale.kernels import record
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


def assert_alike(layout: Layout, m: int, magnitude: bool, device: str = "cpu", steps: int = 7) -> None:
    """Over steps that are measured, or not, and after the fourth paused."""
    ours, theirs = records(layout, m, device), records(layout, m)
    full = ours.counts.clone()
    numbers = torch.arange(1, layout.rows + 1).double(), Q, THRESHOLDS
    for step in range(steps):
        options = {"m": m, "magnitude": magnitude, "every": EVERY}
        record.finish(ours, *(tensor.to(device) for tensor in numbers), layout, **options)
        record.finish_plainly(theirs, *numbers, layout, **options)
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
    q, thresholds = Q.to(device), THRESHOLDS.to(device)
    record.finish(there, there.scale, q, thresholds, LAYOUTS[0], m=3, magnitude=True, every=3)
    assert torch.equal(there.last[0], before[2:4].sum(0))
    assert torch.equal(there.last[1], before[4:6].sum(0))
    assert torch.equal(there.last[2:6], before[2:6])
    assert not there.counts[:6].any()
    assert torch.equal(there.counts[6], before[6])
    assert there.ring[1, :6, 0].tolist() == there.last[:6].sum(1).tolist()
    assert there.ring[[0, 2]].isnan().all()
    assert there.ticket.tolist() == [0, 0, 7, 5, 0, 0, 0, 0, 0, 6, 0]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
class TestCompiled:
    def test_ptx(self, monkeypatch):
        pytest.importorskip("triton")
        from tests.oracles import emulated

        ran = emulated.use(monkeypatch)
        for magnitude in (True, False):
            assert_alike(LAYOUTS[0], 3, magnitude, steps=2)
        assert ran == ["finish_kernel"] * 4

    @pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
    @pytest.mark.parametrize(("m", "width"), [(3, 2048), (5, 8192)])
    def test_machine_code(self, target, m, width):
        pytest.importorskip("triton")
        from tests.oracles import sass

        pointers = {name: "*fp64" for name in record.finish_kernel.arg_names if name.endswith("_ptr")}
        pointers |= dict.fromkeys(("last_ptr", "ticket_ptr", "counts_ptr"), "*i64")
        constants = {"M": m, "MAGNITUDE": True, "K": 5, "T": 1, "WIDTH": width}
        binary = sass.compiled(record.finish_kernel, target, min(width // 256, 32), pointers, constants)
        assert binary.kernel[:4] == b"\x7fELF"
        if m == 3 and target == "sm_90":
            opcodes = [opcode for _, opcode, _ in sass.disassemble(binary.asm["cubin"]).values()]
            assert not [op for op in opcodes if op.startswith(("LDL", "STL"))], "local memory"
