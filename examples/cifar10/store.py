"""The output folder of one experiment: one set of settings, one data set; pipelines and seeds can be added.

    run.json                     the settings, the data's checksum, and where each group of seeds was trained
    runs.npz                     the numbers of all finished seeds, and what their monitors recorded
    state/<pipeline>-seeds*.pt   the last complete epoch of each group of seeds that train together
    *.png, *.svg, report.md

`state/` is only needed to train on; the rest can be committed.  Every file is written whole and is on the
disk before the next one, so a command can be killed at any moment: with --resume, groups go on from their
state.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tempfile
import zipfile
import zlib
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

import sigscale as ss
from examples.cifar10.pipelines import Pipeline
from examples.cifar10.runtime import FolderError
from examples.cifar10.train import NUMBERS, Run
from examples.common import durable, environment

Array = npt.NDArray[Any]
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError)
DAMAGED += (zipfile.BadZipFile, zlib.error)  # type: ignore[assignment]
LEFTOVER = re.compile(r"\..+\.\d+\.part")
"""What a command that was killed while it wrote leaves."""
FIELDS = [field.name for field in fields(ss.GradientHistory)]
Job = tuple[Pipeline, tuple[int, ...]]
"""Seeds that are trained together."""
SEEDS_LIMIT = 10_000
SEEDS_RULE = "must be how many, such as 25, or ranges, such as 0-9,20-24"


@dataclass(frozen=True)
class Outcome:
    """A finished run of one seed: for each of `train.NUMBERS` a curve (epochs,)."""

    pipeline: str
    label: str
    seed: int
    curves: Mapping[str, npt.NDArray[np.float64]]
    about: Mapping[str, Any]


def by_pipeline(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.pipeline, []).append(outcome)
    return groups


@dataclass
class Group:
    """Seeds that were trained together; `numbers` is (epochs, seeds, NUMBERS)."""

    about: dict[str, Any]
    numbers: npt.NDArray[np.float64]
    history: ss.GradientHistory

    @property
    def name(self) -> str:
        return group_name(self.about["pipeline"], self.about["seeds"])

    def outcomes(self) -> Iterator[Outcome]:
        for place, seed in enumerate(self.about["seeds"]):
            curves = {name: self.numbers[:, place, column] for column, name in enumerate(NUMBERS)}
            yield Outcome(self.about["pipeline"], self.about["label"], seed, curves, self.about)


@dataclass
class Folder:
    """`groups` are the finished ones, by their names, once `collect` has read them."""

    path: Path
    groups: dict[str, Group] = field(default_factory=dict)

    def check(self, experiment: Mapping[str, Any], *, resume: bool) -> None:
        """Raise FolderError unless `experiment` may begin here (or, with `resume`, go on); write nothing."""
        existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise FolderError(
                f"{self.path}: {existing} is not a folder to write in. Name another with --out."
            )
        if not self._identity.exists():
            foreign = [name for name in ("runs", "runs.npz", "state") if (self.path / name).exists()]
            if foreign or resume:
                why = f"{foreign[0]} is there, but not its run.json" if foreign else "no run.json to resume"
                raise FolderError(
                    f"{self.path}: {why}. Name another folder with --out, or start without --resume."
                )
            return
        self._check_same(experiment, more_epochs=resume)
        if not resume:
            rest = "Continue, extend or report them with --resume, or name another folder with --out."
            raise FolderError(f"{self.path}: holds runs of these settings. {rest}")

    def begin(self, experiment: Mapping[str, Any]) -> None:
        """Make the folder and record `experiment`, ahead of all else: a folder without it is foreign."""
        self.path.mkdir(parents=True, exist_ok=True)
        groups = self._about()["groups"] if self._identity.exists() else []
        self._write_json({**experiment, "groups": groups})
        (self.path / "state").mkdir(exist_ok=True)

    def collect(self, experiment: Mapping[str, Any], merged: Sequence[Group] = ()) -> None:
        """Bring `groups`, run.json and runs.npz up to date, with `merged` and with complete states."""
        known = {group.name: group for group in self.read_groups()}
        found = dict(known)
        for group in (*merged, *map(self._read_state, self._states())):
            there = len(found[group.name].numbers) if group.name in found else 0
            if there < len(group.numbers) == experiment["epochs"]:
                found[group.name] = group
        self.groups = {name: found[name] for name in sorted(found)}
        if any(found[name] is not known.get(name) for name in found):
            content = io.BytesIO()
            np.savez_compressed(content, **self._arrays())
            with durable(self.path / "runs.npz") as part:
                part.write_bytes(content.getbuffer())
            self._write_json({**experiment, "groups": [group.about for group in self.groups.values()]})

    def save(self, run: Run) -> None:
        """The run as it is after its last complete epoch."""
        content = io.BytesIO()  # torch.save has no OSError for a full disk
        history = run.monitor.history()
        recorded = {name: getattr(history, name) for name in FIELDS}
        recorded |= {name: torch.from_numpy(recorded[name]) for name in ("steps", "values")}
        torch.save({**run.state_dict(), "monitor": recorded, "about": about(run)}, content)
        with durable(self._state(run.pipeline.name, run.seeds)) as part:
            part.write_bytes(content.getbuffer())

    def restore(self, run: Run) -> None:
        """Put `run` where it was after its last complete epoch; leave it alone if it never got that far."""
        path = self._state(run.pipeline.name, run.seeds)
        if not path.exists():
            return
        state = self._load(path)
        if state["about"]["device"] != (now := device_name(run.device)):
            rest = "Go on there (--device), or delete the file: its runs then start anew."
            raise FolderError(f"{path}: was begun on {state['about']['device']}, this is {now}. {rest}")
        with self._blaming(path), tempfile.TemporaryDirectory() as folder:
            run.load_state_dict(state)
            _history(state["monitor"]).save(Path(folder) / "history.npz")
            run.monitor.load(Path(folder) / "history.npz")

    def begun(self, pipeline: str) -> list[tuple[int, ...]]:
        """The seeds of each state of a pipeline."""
        names = [path.stem.rpartition("-seeds") for path in self._states()]
        return [parse_seeds(seeds) for name, _, seeds in names if name == pipeline]

    def finished(self, epochs: int) -> set[tuple[str, int]]:
        """Pipeline and seed of every run with as many epochs."""
        return {(o.pipeline, o.seed) for o in self.outcomes(epochs=epochs)}

    def outcomes(self, pipelines: Iterable[str] | None = None, *, epochs: int) -> list[Outcome]:
        """All finished runs (of these pipelines), each seed once."""
        groups = [group for group in self.groups.values() if len(group.numbers) == epochs]
        found = {(o.pipeline, o.seed): o for group in groups for o in group.outcomes()}
        order = list(dict.fromkeys(name for name, _ in found) if pipelines is None else pipelines)
        chosen = [outcome for outcome in found.values() if outcome.pipeline in order]
        return sorted(chosen, key=lambda outcome: (order.index(outcome.pipeline), outcome.seed))

    def histories(self, pipeline: str, epochs: int) -> list[ss.GradientHistory]:
        """What the monitors of a pipeline's finished groups recorded."""
        groups = [group for group in self.groups.values() if group.about["pipeline"] == pipeline]
        return [group.history for group in groups if len(group.numbers) == epochs]

    def to_merge(self, others: Iterable[Path], experiment: Mapping[str, Any]) -> list[Group]:
        """The finished groups of other folders of `experiment`; FolderError where results contradict."""
        merged = {group.name: group for group in self.read_groups()}
        known = {(o.pipeline, o.seed): (o, self.path) for group in merged.values() for o in group.outcomes()}
        for other in map(Folder, others):
            if not other._identity.exists():
                raise FolderError(f"{other.path}: holds no runs. Name a folder that this command wrote.")
            other._check_same(experiment)
            for group in other.read_groups():
                merged.setdefault(group.name, group)
                for new in group.outcomes():
                    old, where = known.setdefault((new.pipeline, new.seed), (new, other.path))
                    if not all(np.array_equal(old.curves[n], new.curves[n], equal_nan=True) for n in NUMBERS):
                        what = f"different results for {new.pipeline}, seed {new.seed}"
                        raise FolderError(f"{other.path} and {where} have {what}. Keep the ones you trust.")
        return list(merged.values())

    def read_groups(self) -> list[Group]:
        """The groups in runs.npz."""
        path = self.path / "runs.npz"
        if not path.exists():
            return []
        with self._blaming(path), np.load(path, allow_pickle=False) as file:
            names = sorted({name.partition("/")[0] for name in file.files})
            return [self._read_group(name, file) for name in names]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock; FolderError if another command does.  Deletes what killed commands left."""
        try:
            with FileLock(self.path / ".lock", timeout=0):
                for part in (*self.path.glob(".*.part"), *(self.path / "state").glob(".*.part")):
                    if LEFTOVER.fullmatch(part.name):
                        part.unlink(missing_ok=True)
                yield
        except Timeout as error:
            rest = "Wait for it, or give this one its own --out, which --merge can add later."
            raise FolderError(f"{self.path}: another command is at work here. {rest}") from error

    @property
    def _identity(self) -> Path:
        return self.path / "run.json"

    def _state(self, pipeline: str, seeds: Iterable[int]) -> Path:
        return self.path / "state" / f"{group_name(pipeline, seeds)}.pt"

    def _states(self) -> list[Path]:
        states = sorted((self.path / "state").glob("*-seeds*.pt"))
        return [path for path in states if re.search(r"seeds[\d,-]+$", path.stem)]

    def _load(self, path: Path) -> dict[str, Any]:
        with self._blaming(path):
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            return {**state, "about": dict(state["about"])}

    def _read_state(self, path: Path) -> Group:
        state = self._load(path)
        with self._blaming(path):
            return Group(state["about"], state["history"].numpy(), _history(state["monitor"]))

    def _read_group(self, name: str, file: Mapping[str, Array]) -> Group:
        arrays = {field: file[f"{name}/monitor/{field}"] for field in FIELDS}
        numbers = np.stack([file[f"{name}/{number}"] for number in NUMBERS], -1)
        (about,) = (g for g in self._about()["groups"] if group_name(g["pipeline"], g["seeds"]) == name)
        return Group({**about, "epochs": len(numbers)}, numbers, _history(arrays))

    def _arrays(self) -> dict[str, Any]:
        """Those of runs.npz: <group>/<number> (epochs, seeds), <group>/monitor/<field of GradientHistory>."""
        arrays: dict[str, Any] = {}
        for name, group in self.groups.items():
            arrays |= {f"{name}/{number}": group.numbers[..., k] for k, number in enumerate(NUMBERS)}
            arrays |= {f"{name}/monitor/{field}": getattr(group.history, field) for field in FIELDS}
        return arrays

    def _about(self) -> dict[str, Any]:
        try:
            found = dict(json.loads(self._identity.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            why = f"not readable as JSON ({error})"
            raise FolderError(f"{self._identity}: {why}. Name another folder with --out.") from error
        if "groups" not in found:
            why = (
                "written by an earlier version (runs/, gradients/, checkpoints/), which this one cannot read"
            )
            raise FolderError(f"{self.path}: {why}. Name another folder with --out.")
        return found

    def _write_json(self, content: Mapping[str, Any]) -> None:
        with durable(self._identity) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _check_same(self, experiment: Mapping[str, Any], *, more_epochs: bool = False) -> None:
        there = self._about()
        changed = [
            f"{key} {there.get(key)!r} there, {value!r} now"
            for key, value in experiment.items()
            if there.get(key) != value and not (key == "epochs" and more_epochs and there[key] < value)
        ]
        if changed:
            rest = "Name another folder with --out, or repeat that run's options."
            raise FolderError(f"{self.path}: holds another run ({'; '.join(changed)}). {rest}")

    @contextmanager
    def _blaming(self, path: Path) -> Iterator[None]:
        try:
            yield
        except FolderError:
            raise
        except DAMAGED as error:
            why = f"missing or damaged ({type(error).__name__})"
            raise FolderError(f"{path}: {why}. Delete it: with --resume its runs are made again.") from error


def plan(
    pipelines: Sequence[Pipeline],
    seeds: Sequence[int],
    finished: set[tuple[str, int]],
    begun: Callable[[str], Sequence[tuple[int, ...]]],
    *,
    together: int,
    world: int = 1,
) -> list[list[Job]]:
    """For each of `world` processes its jobs.

    Groups that were begun go on as they were.  The other seeds of a pipeline are divided evenly over the
    processes, at most `together` in a job.
    """
    jobs: list[list[Job]] = [[] for _ in range(world)]
    for pipeline in pipelines:
        open_ = {seed for seed in seeds if (pipeline.name, seed) not in finished}
        for group in begun(pipeline.name):
            if open_.intersection(group):
                min(jobs, key=len).append((pipeline, group))
                open_.difference_update(group)
        for process, share in enumerate(np.array_split(sorted(open_), world)):
            for part in np.array_split(share, max(1, -(-len(share) // together))):
                if len(part):
                    jobs[process].append((pipeline, tuple(part.tolist())))
    return jobs


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of "3" (0, 1, 2) or "0-1,7-7" (0, 1, 7); ArgumentTypeError if the text names none."""
    number, ranges = re.fullmatch(r"[0-9]{1,9}", text), re.fullmatch(r"([0-9]{1,9}-[0-9]{1,9},?\b)+", text)
    bounds = [(0, int(text) - 1)] if number else []
    if ranges:
        bounds = [(int(first), int(last)) for first, last in re.findall(r"(\d+)-(\d+)", text)]
    count = sum(last - first + 1 for first, last in bounds)
    if not bounds or any(last < first for first, last in bounds) or count > SEEDS_LIMIT:
        raise ArgumentTypeError(f"{text!r}: {SEEDS_RULE}; from 1 to {SEEDS_LIMIT:,} of them")
    return tuple(sorted({seed for first, last in bounds for seed in range(first, last + 1)}))


def seed_ranges(seeds: Iterable[int]) -> str:
    """What `parse_seeds` reads: 0-4,7-7 for 0, 1, 2, 3, 4 and 7."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(f"{first}-{last}" for first, last in ranges)


def group_name(pipeline: str, seeds: Iterable[int]) -> str:
    return f"{pipeline}-seeds{seed_ranges(seeds)}"


def about(run: Run) -> dict[str, Any]:
    """Where and by what a group of seeds was trained."""
    return {
        "pipeline": run.pipeline.name,
        "label": run.pipeline.label,
        "seeds": list(run.seeds),
        "epochs": run.epoch,
        "seconds": sum(run.seconds),
        "device": device_name(run.device),
        **environment(),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _history(values: Mapping[str, Any]) -> ss.GradientHistory:
    """Out of tensors or arrays."""
    found = {name: np.asarray(value) for name, value in values.items()}
    kinds: dict[str, Any] = {
        **{name: found[name].tolist() for name in ("names", "kinds")},
        **{name: tuple(found[name].tolist()) for name in ("quantiles", "thresholds")},
        **{name: found[name].item() for name in ("magnitude", "mantissa_bits", "step_count")},
    }
    return ss.GradientHistory(steps=found["steps"], values=found["values"], **kinds)
