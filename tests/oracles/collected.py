"""The truth about gradients: collected one by one with PyTorch's own hooks, summarized with NumPy."""

from __future__ import annotations

import copy
from collections import defaultdict

import numpy as np
import torch
from torch import nn

import sigscale as ss

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ACTIVATIONS = (ss.nn.Activation, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.PReLU, nn.LeakyReLU)


class Twin:
    """A copy of a model that keeps the gradients of a step: `gradients[name]`, a list of tensors."""

    def __init__(self, model: nn.Module, activations: tuple[type, ...] = ACTIVATIONS) -> None:
        self.model = copy.deepcopy(model)
        self.gradients: dict[str, list[torch.Tensor]] = defaultdict(list)
        for name, module in self.model.named_modules():
            if isinstance(module, activations):
                module.register_forward_pre_hook(self._hook(name), with_kwargs=True)

    def _hook(self, name: str):
        def keep(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]):
            x = (args[0] if args else kwargs["input"]).clone()
            if x.requires_grad:
                x.register_hook(lambda g: self.gradients[name].append(g.clone()))
            return (x,), {}

        return keep

    def step(self) -> dict[str, np.ndarray]:
        """All coordinates of each gradient of the step, as float64."""
        found = dict(self.gradients)
        self.gradients.clear()
        activations = list(found)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                found[name] = [parameter.grad.clone()]
        flat = {name: np.concatenate([flattened(g) for g in parts]) for name, parts in found.items()}
        parameters = [name for name in flat if name not in activations]
        for kind, names in (("activations", activations), ("parameters", parameters)):
            if names:
                flat[f"all {kind}"] = np.concatenate([flat[name] for name in names])
        return flat


def flattened(g: torch.Tensor) -> np.ndarray:
    return g.detach().double().flatten().cpu().numpy()


def assert_row(history: ss.GradientHistory, step: int, name: str, g: np.ndarray) -> None:
    """One row of a history tells the truth about the coordinates g; `step` is its place in the history."""
    place = step, history.names.index(name)
    found = {column: history.get(column)[place] for column in history.columns}
    assert found["count"] == len(g), name
    assert found["zeros"] == (g == 0).sum(), name
    assert found["infs"] == np.isinf(g).sum(), name
    assert found["nans"] == np.isnan(g).sum(), name
    g = g[~np.isnan(g)]
    g, magnitudes = (abs(g) if history.magnitude else g), abs(g)
    factor = 1 + 2.0**-history.mantissa_bits
    tiny = 2.0 ** (-126 - history.mantissa_bits)
    for q in history.quantiles:
        low, high = (np.quantile(g, q, method=method) for method in ("lower", "higher"))
        low, high = (
            (low / factor if low > 0 else low * factor),
            (high * factor if high > 0 else high / factor),
        )
        assert low - tiny <= history.quantile(q)[place] <= high + tiny, (name, q)
    assert abs(found["mean"] - g.mean()) <= magnitudes.mean() / 2**history.mantissa_bits + tiny, name
    for threshold in history.thresholds:
        share = history.below(threshold)[place]
        low, high = (magnitudes < threshold / factor).mean(), (magnitudes < threshold * factor).mean()
        assert low - 1e-12 <= share <= high + 1e-12, name
    assert not np.isnan(history.values[place]).any()


def assert_step(history: ss.GradientHistory, step: int, truth: dict[str, np.ndarray]) -> None:
    """All rows of one step tell the truth; rows without a gradient are NaN."""
    for name in history.names:
        if name in truth:
            assert_row(history, step, name, truth[name])
        else:
            assert np.isnan(history.values[step, history.names.index(name)]).all(), name
    assert set(truth) <= set(history.names)


def network(device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), ss.nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(16, 3)).to(device)


def batch(step: int, device: str = "cpu") -> torch.Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(step)).to(device)


def recorded(model, loss=lambda model: model(batch(0)).square().sum(), **options) -> ss.GradientHistory:
    """The history of one training step."""
    with ss.GradientMonitor(model, **options) as monitor:
        loss(model).backward()
        monitor.step()
    return monitor.history()


def run(models, steps=1, backward=None, **options):
    """Train `model` under a monitor and a twin beside it: the history, and the truth of each step."""
    model, device = models if isinstance(models, tuple) else (models, "cpu")
    backward = backward or (lambda model, step: model(batch(step, device)).square().sum().backward())
    twin, truth = Twin(model), []
    with ss.GradientMonitor(model, **options) as monitor:
        for step in range(steps):
            for network in (model, twin.model):
                network.zero_grad()
                backward(network, step)
            monitor.step()
            truth.append(twin.step())
            with torch.no_grad():
                for network in (model, twin.model):
                    for parameter in network.parameters():
                        if parameter.grad is not None:
                            parameter -= 0.01 * parameter.grad
    return monitor.history(), truth
