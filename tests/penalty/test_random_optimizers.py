"""Random optimizers with attached penalties and mishaps, against the gradient added by hand, in float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import sigscale as ss
from tests.penalty.test_attach import assert_same

CONFIGURATIONS, OFTEN = 600, 80  # the first ones run each time, the others with -m slow
STEPS = 5
SWITCHES = (False, True)
FOREACH = {"maximize": SWITCHES, "foreach": (None, *SWITCHES), "weight_decay": (0.0, 0.1)}
FUSED = FOREACH | {"fused": (None, True)}
# The options of each class and their values, to draw from; all others are PyTorch's defaults.
OPTIONS: dict[type[optim.Optimizer], dict[str, tuple[Any, ...]]] = {
    optim.SGD: FUSED | {"momentum": (0.0, 0.9), "dampening": (0.0, 0.1)},
    optim.Adam: FUSED | {"amsgrad": SWITCHES, "decoupled_weight_decay": SWITCHES},
    optim.AdamW: FUSED | {"amsgrad": SWITCHES},
    optim.NAdam: FOREACH | {"decoupled_weight_decay": SWITCHES},
    optim.RAdam: FOREACH | {"decoupled_weight_decay": SWITCHES},
    optim.Adamax: FOREACH,
    optim.Adagrad: FUSED | {"lr_decay": (0.0, 0.1)},
    optim.Adadelta: FOREACH,
    optim.RMSprop: FOREACH | {"centered": SWITCHES, "momentum": (0.0, 0.9)},
    optim.ASGD: FOREACH,
    optim.Rprop: {"maximize": SWITCHES, "foreach": (None, *SWITCHES)},
    optim.Adafactor: FOREACH,
    optim.Muon: {"weight_decay": (0.0, 0.1)},
    optim.LBFGS: {"line_search_fn": (None, "strong_wolfe"), "max_iter": (3,)},
}
EVENTS = (
    "nothing",
    "error in a hook",
    "error in a step",
    "overflow",
    "freeze",
    "resume",
    "replace",
    "new group",
)


class DeliberateError(Exception):
    pass


@dataclass
class Run:
    """One configuration; drawn twice from the same seed, it is the same network and the same optimizer."""

    seed: int
    net: nn.Module = field(init=False)
    optimizer: optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        draw = self.draw = random.Random(self.seed)
        self.base = draw.choice([*OPTIONS])
        self.options = {name: draw.choice(values) for name, values in OPTIONS[self.base].items()}
        if self.options.get("fused"):
            self.options["foreach"] = None  # only one of them
        if self.options.get("fused") and self.base is optim.SGD:
            self.options["momentum"] = 0.0  # resumed before each parameter had a gradient, PyTorch's fails
        self.options |= {"lr": draw.choice((0.003, 0.03))}
        self.kind = draw.choice((self.base, subclass(self.base, 1), subclass(self.base, 2)))
        self.patched = draw.random() < 0.7  # an optimizer of the base class was made before
        self.by_closure = self.base is optim.LBFGS or draw.random() < 0.3
        self.scaled = not self.by_closure and draw.random() < 0.4
        self.unscaled_early = draw.random() < 0.5
        self.scheduled = draw.random() < 0.3
        self.events = [draw.choice(EVENTS) for _ in range(STEPS)]
        self.net = network(draw)
        self.optimizer = self.make()

    def make(self) -> optim.Optimizer:
        parameters = [p for p in self.net.parameters() if self.base is not optim.Muon or p.ndim == 2]
        generator = random.Random(self.seed)
        self.late = [] if self.base is optim.LBFGS else parameters[-1:]
        parameters = parameters[: len(parameters) - len(self.late)]
        cut = 0 if self.base is optim.LBFGS else generator.randint(0, len(parameters) - 1)
        groups: list[dict[str, Any]] = [
            {"params": part} for part in (parameters[:cut], parameters[cut:]) if part
        ]
        for group in groups[1:]:
            group |= {
                name: generator.choice(OPTIONS[self.base][name])
                for name in ("maximize", "weight_decay")
                if name in self.options
            }
        if self.patched:
            self.base([nn.Parameter(torch.ones(1, 1))], **self.options)
        return self.kind(groups, **self.options)

    def penalties(self) -> list[ss.WeightPenalty]:
        generator = random.Random(self.seed + 1)
        l2, l1 = generator.choice(((0.3, 0.0), (0.0, 0.02), (0.3, 0.02), (1e-9, 0.0)))
        shape = generator.randrange(4)
        if shape == 0:
            return [ss.WeightPenalty(self.net, l2, l1)]
        if shape == 1:
            return [ss.WeightPenalty(self.net, l2, l1, exclude="*.bias")]
        return [ss.WeightPenalty(self.net[:2], l2, l1), ss.WeightPenalty(self.net[2:], 0.1)]


def subclass(base: type[optim.Optimizer], depth: int) -> type[optim.Optimizer]:
    """A class whose step() calls its base class's, and may fail after it."""

    class Ours(base):  # type: ignore[misc,valid-type]
        failing = False

        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            if self.failing:
                raise DeliberateError
            return result

    return Ours if depth == 1 else subclass(Ours, depth - 1)


def network(draw: random.Random) -> nn.Sequential:
    torch.manual_seed(draw.randrange(1000))
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    if draw.random() < 0.3:
        net[4].weight = net[2].weight
    if draw.random() < 0.3:
        net[draw.choice((0, 2))].bias.requires_grad_(False)
    return net


def by_hand(run: Run, penalties: list[ss.WeightPenalty]) -> Tensor:
    """Add each penalty's gradient where there is a gradient; the value is that of those parameters."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for group in run.optimizer.param_groups:
            sign = -1.0 if group.get("maximize") else 1.0
            for p in group["params"]:
                for penalty in penalties:
                    if p.grad is not None and p.requires_grad and any(p is q for q in penalty.parameters):
                        p.grad.add_(p, alpha=sign * penalty.l2)
                        p.grad.add_(p.sign(), alpha=sign * penalty.l1)
                        total += sign * (penalty.l2 / 2 * p.square().sum() + penalty.l1 * p.abs().sum())
    return total


def replace(run: Run) -> None:
    """Give the model other parameters, and the optimizer those, as sharding does."""
    names = {id(p): name for name, p in run.net.named_parameters()}
    held = [[names[id(p)] for p in group["params"]] for group in run.optimizer.param_groups]
    late = [names[id(p)] for p in run.late]
    frozen = [name for name, p in run.net.named_parameters() if not p.requires_grad]
    tied = run.net[4].weight is run.net[2].weight
    state = {name: value.clone() for name, value in run.net.state_dict().items()}
    run.net.load_state_dict(state, assign=True)
    if tied:
        run.net[4].weight = run.net[2].weight
    for name in frozen:
        run.net.get_parameter(name).requires_grad_(False)
    for group, group_names in zip(run.optimizer.param_groups, held, strict=True):
        group["params"] = [run.net.get_parameter(name) for name in group_names]
    run.late = [run.net.get_parameter(name) for name in late]
    run.optimizer.state.clear()


def resume(run: Run) -> None:
    """Go on with another optimizer of the same kind, from the state of the first."""
    state, late = run.optimizer.state_dict(), run.late
    parameters = [group["params"] for group in run.optimizer.param_groups]
    groups = [{"params": held} for held in parameters]
    run.optimizer = run.kind(groups, **run.options)
    run.optimizer.load_state_dict(state)
    run.late = late


def loss_of(run: Run, step: int) -> Tensor:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(run.seed + step), dtype=torch.float64)
    return run.net(x).square().sum()


def fail(*_: object) -> None:
    raise DeliberateError


def one_step(run: Run, step: int, event: str, scaler: Any, added: Callable[[], Tensor]) -> float | None:
    """A step of the training; `added` adds the penalties by hand or does nothing."""
    optimizer = run.optimizer
    optimizer.zero_grad()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(run, step)
        loss.backward()
        return loss.detach() + added()

    hook = optimizer.register_step_pre_hook(fail) if event == "error in a hook" else None
    fails = event == "error in a step" and run.kind is not run.base
    optimizer.failing = fails  # type: ignore[attr-defined]
    with pytest.raises(DeliberateError) if hook or fails else nullcontext():
        if run.by_closure:
            return float(optimizer.step(closure))  # type: ignore[arg-type]
        loss = loss_of(run, step) * (torch.inf if event == "overflow" and run.scaled else 1.0)
        if scaler is None:
            loss.backward()
            if not loss.isinf():
                added()
                optimizer.step()
        else:
            scaler.scale(loss).backward()
            if run.unscaled_early:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
    if hook:
        hook.remove()
    for name in ("grad_scale", "found_inf"):  # GradScaler leaves them after an error, and multiplies by them
        vars(optimizer).pop(name, None)
    return None


class Penalties:
    """The penalties of a run, each at work from when the optimizer holds some of its parameters."""

    def __init__(self, run: Run, attached: bool) -> None:
        self.run, self.attached, self.all = run, attached, run.penalties()
        self.active: list[ss.WeightPenalty] = []
        self.attachments: list[ss.Attachment] = []

    def join(self) -> None:
        optimizer = self.run.optimizer
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for penalty in self.all:
            if penalty not in self.active and not held.isdisjoint(map(id, penalty.parameters)):
                self.active.append(penalty)
                if self.attached:
                    self.attachments.append(penalty.attach(optimizer))

    def leave(self) -> None:
        for attachment in self.attachments:
            attachment.remove()
        self.active.clear()
        self.attachments.clear()

    def added(self) -> Tensor:
        return torch.zeros(()) if self.attached else by_hand(self.run, self.active)


def befall(run: Run, event: str, penalties: Penalties) -> None:
    """What happens to network, optimizer and penalties before a step."""
    if event == "end":
        penalties.leave()
    elif event == "freeze":
        parameters = run.optimizer.param_groups[0]["params"]
        if len(parameters) > 1:
            parameters[0].requires_grad_(not parameters[0].requires_grad)
    elif event == "replace" and run.base is not optim.LBFGS:  # which keeps its parameters itself
        replace(run)
    elif event == "new group" and run.late:
        run.optimizer.add_param_group({"params": run.late})
        run.late = []
        penalties.join()
    elif event == "resume" and not run.scheduled:
        resume(run)
        penalties.leave()
        penalties.join()


def train(run: Run, attached: bool) -> list[Any]:
    """Losses of closures, settings of groups and parameters after each step, the last one unpenalized."""
    penalties, results = Penalties(run, attached), list[Any]()
    penalties.join()
    schedule = optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9) if run.scheduled else None
    for step, event in enumerate([*run.events, "end"]):
        befall(run, event, penalties)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if attached and run.scaled else None
        results.append(one_step(run, step, event, scaler, penalties.added))
        if schedule is not None and event != "end":
            schedule.step()
        results.append([{k: v for k, v in g.items() if k != "params"} for g in run.optimizer.param_groups])
        results.append([p.detach().clone() for p in run.net.parameters()])
    return results


SEEDS = [*range(OFTEN), *(pytest.param(s, marks=pytest.mark.slow) for s in range(OFTEN, CONFIGURATIONS))]


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("seed", SEEDS)
def test_random_optimizer(seed: int) -> None:
    found, expected = train(Run(seed), attached=True), train(Run(seed), attached=False)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, list) and isinstance(theirs[0], Tensor):
            assert_same(ours, theirs, rtol=1e-8, atol=1e-8)
        elif isinstance(theirs, float):
            assert ours == pytest.approx(theirs, rel=1e-8)
        else:
            assert ours == theirs
