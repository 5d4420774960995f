"""The output folder of one experiment: one set of settings, one data set; pipelines and seeds can be added.

    run.json                     the settings, the data's checksum, and where each group of seeds was trained
    runs.npz                     the numbers of all finished seeds, and what their monitors recorded
    state/<pipeline>-seeds*.pt   the last complete epoch of each group of seeds that train together
    *.png, *.svg, report.md, claims.json

`state/` is only needed to train on; the rest can be committed.  Every file is written whole and is on the
disk before the next one, so a command can be killed at any moment: with --resume, groups go on from their
state.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import platform
import re
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import sigscale as ss
from examples.cifar10.pipelines import Pipeline
from examples.cifar10.runtime import FolderError
from examples.cifar10.train import NUMBERS, Run

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Array = npt.NDArray[Any]
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError)
DAMAGED += (zipfile.BadZipFile, zlib.error)  # type: ignore[assignment]
LEFTOVER = re.compile(
    r"\.(run\.json|runs\.npz|report\.md|claims\.json|figure.*\.(png|svg)|also-.*\.(png|svg)|.*-seeds.*\.pt)"
    r"\.\d+\.part"
)
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

    def column(self, name: str) -> npt.NDArray[np.float64]:
        return self.curves[name]


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
        self._check_writable()
        if not self._identity.exists():
            if foreign := [name for name in ("runs", "runs.npz", "state") if (self.path / name).exists()]:
                raise FolderError(
                    f"{self.path}: {foreign[0]} is there, but not the run.json of the run that wrote it. "
                    "Name another folder with --out."
                )
            if resume:
                raise FolderError(
                    f"{self.path}: no run.json there, so there is nothing to resume. Correct --out, or leave "
                    "--resume out to start."
                )
            return
        self._check_same(experiment, more_epochs=resume)
        if not resume:
            raise FolderError(
                f"{self.path}: holds runs of these settings. Continue, extend or report them with "
                "--resume, or name another folder with --out."
            )

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
        history = {f.name: getattr(run.monitor.history(), f.name) for f in fields(ss.GradientHistory)}
        arrays = {name: torch.from_numpy(history[name]) for name in ("steps", "values")}
        torch.save({**run.state_dict(), "monitor": {**history, **arrays}, "about": about(run)}, content)
        with durable(self._state(run.pipeline.name, run.seeds)) as part:
            part.write_bytes(content.getbuffer())

    def restore(self, run: Run) -> None:
        """Put `run` where it was after its last complete epoch; leave it alone if it never got that far."""
        path = self._state(run.pipeline.name, run.seeds)
        if not path.exists():
            return
        state = self._load(path)
        if state["about"]["device"] != (now := device_name(run.device)):
            raise FolderError(
                f"{path}: was begun on {state['about']['device']}, this is {now}, and the result would be "
                "that of neither. Go on there (--device), or delete the file: its runs then start anew."
            )
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
        wanted = None if pipelines is None else list(pipelines)
        found = {
            (outcome.pipeline, outcome.seed): outcome
            for group in self.groups.values()
            if len(group.numbers) == epochs
            for outcome in group.outcomes()
            if wanted is None or outcome.pipeline in wanted
        }
        order = {name: rank for rank, name in enumerate(wanted or [])}
        return sorted(found.values(), key=lambda outcome: (order.get(outcome.pipeline, 0), outcome.seed))

    def histories(self, pipeline: str, epochs: int) -> list[ss.GradientHistory]:
        """What the monitors of a pipeline's finished groups recorded."""
        groups = [group for group in self.groups.values() if group.about["pipeline"] == pipeline]
        return [group.history for group in groups if len(group.numbers) == epochs]

    def to_merge(self, others: Iterable[Path], experiment: Mapping[str, Any]) -> list[Group]:
        """The finished groups of other folders of `experiment`; FolderError where results contradict."""
        merged: dict[str, Group] = {group.name: group for group in self.read_groups()}
        results = {
            (o.pipeline, o.seed): (o, self.path) for group in merged.values() for o in group.outcomes()
        }
        for other in map(Folder, others):
            if not other._identity.exists():
                raise FolderError(f"{other.path}: holds no runs. Name a folder that this command wrote.")
            other._check_same(experiment)
            for group in other.read_groups():
                for outcome in group.outcomes():
                    mine, where = results.setdefault((outcome.pipeline, outcome.seed), (outcome, other.path))
                    if not all(
                        np.array_equal(mine.column(n), outcome.column(n), equal_nan=True) for n in NUMBERS
                    ):
                        raise FolderError(
                            f"{other.path} and {where} have different results for {outcome.pipeline}, seed "
                            f"{outcome.seed}. Keep the ones you trust."
                        )
                merged.setdefault(group.name, group)
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
        """Hold the folder's lock; FolderError if another command does.  Deletes what killed commands left.

        Systems without locks (Windows, some network disks) go on without, and nothing is deleted.
        """
        with (self.path / ".lock").open("a") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for part in (*self.path.glob(".*.part"), *(self.path / "state").glob(".*.part")):
                        if LEFTOVER.fullmatch(part.name) and part.is_file():
                            part.unlink(missing_ok=True)
            except BlockingIOError as error:
                raise FolderError(
                    f"{self.path}: another command is at work here. Wait for it, or give this one an --out "
                    "of its own, which --merge can add later."
                ) from error
            except OSError:
                pass
            yield

    @property
    def _identity(self) -> Path:
        return self.path / "run.json"

    def _state(self, pipeline: str, seeds: Iterable[int]) -> Path:
        return self.path / "state" / f"{group_name(pipeline, seeds)}.pt"

    def _states(self) -> list[Path]:
        return [
            p
            for p in sorted((self.path / "state").glob("*-seeds*.pt"))
            if re.search(r"seeds[\d,-]+$", p.stem)
        ]

    def _load(self, path: Path) -> dict[str, Any]:
        with self._blaming(path):
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            return {**state, "about": dict(state["about"])}

    def _read_state(self, path: Path) -> Group:
        state = self._load(path)
        with self._blaming(path):
            return Group(state["about"], state["history"].numpy(), _history(state["monitor"]))

    def _read_group(self, name: str, file: Mapping[str, Array]) -> Group:
        arrays = {f.name: file[f"{name}/monitor/{f.name}"] for f in fields(ss.GradientHistory)}
        numbers = np.stack([file[f"{name}/{number}"] for number in NUMBERS], -1)
        (about,) = (g for g in self._about()["groups"] if group_name(g["pipeline"], g["seeds"]) == name)
        return Group({**about, "epochs": len(numbers)}, numbers, _history(arrays))

    def _arrays(self) -> dict[str, Any]:
        """Those of runs.npz: <group>/<number> (epochs, seeds), <group>/monitor/<field of GradientHistory>."""
        arrays: dict[str, Any] = {}
        for name, group in self.groups.items():
            arrays |= {f"{name}/{number}": group.numbers[..., k] for k, number in enumerate(NUMBERS)}
            arrays |= {
                f"{name}/monitor/{f.name}": getattr(group.history, f.name) for f in fields(group.history)
            }
        return arrays

    def _about(self) -> dict[str, Any]:
        try:
            found = dict(json.loads(self._identity.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise FolderError(
                f"{self._identity}: not readable as JSON ({error}). Name another folder with --out."
            ) from error
        if "groups" not in found:
            raise FolderError(
                f"{self.path}: written by an earlier version (runs/, gradients/, checkpoints/), whose files "
                "this one cannot read. Name another folder with --out."
            )
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
            raise FolderError(
                f"{self.path}: holds another run ({'; '.join(changed)}). "
                "Name another folder with --out, or repeat that run's options."
            )

    def _check_writable(self) -> None:
        existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise FolderError(f"{self.path}: {existing} is not a folder. Name another one with --out.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise FolderError(f"{self.path}: no permission to write in {existing}. Name another --out.")

    @contextmanager
    def _blaming(self, path: Path) -> Iterator[None]:
        try:
            yield
        except FolderError:
            raise
        except DAMAGED as error:
            raise FolderError(
                f"{path}: missing or damaged ({type(error).__name__}). Delete it: with --resume its runs are "
                "made again."
            ) from error


def plan(
    pipelines: Sequence[Pipeline],
    seeds: Sequence[int],
    finished: set[tuple[str, int]],
    begun: Callable[[str], Sequence[tuple[int, ...]]],
    *,
    together: int,
    world: int = 1,
) -> list[list[tuple[Pipeline, tuple[int, ...]]]]:
    """For each of `world` processes its jobs: pipelines, and seeds that are trained together.

    Groups that were begun go on as they were.  The other seeds of a pipeline are divided evenly over the
    processes, at most `together` in a job.
    """
    jobs: list[list[tuple[Pipeline, tuple[int, ...]]]] = [[] for _ in range(world)]
    for pipeline in pipelines:
        open_ = {seed for seed in seeds if (pipeline.name, seed) not in finished}
        for group in begun(pipeline.name):
            if open_.intersection(group):
                min(jobs, key=len).append((pipeline, group))
                open_.difference_update(group)
        for process, part in enumerate(_parts(sorted(open_), world)):
            if part:
                jobs[process] += [(pipeline, group) for group in _parts(part, -(-len(part) // together))]
    return jobs


def _parts(seeds: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """As many parts, whose sizes differ by at most one."""
    ends = [len(seeds) * part // count for part in range(count + 1)]
    return [tuple(seeds[first:last]) for first, last in pairwise(ends)]


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of "3" (0, 1, 2) or "0-1,7-7" (0, 1, 7); ValueError if the text names none."""
    number, ranges = re.fullmatch(r"[0-9]{1,9}", text), re.fullmatch(r"([0-9]{1,9}-[0-9]{1,9},?\b)+", text)
    bounds = [(0, int(text) - 1)] if number else []
    if ranges:
        bounds = [(int(first), int(last)) for first, last in re.findall(r"(\d+)-(\d+)", text)]
    count = sum(last - first + 1 for first, last in bounds)
    if not bounds or any(last < first for first, last in bounds) or count > SEEDS_LIMIT:
        raise ValueError(f"{text!r}: {SEEDS_RULE}; from 1 to {SEEDS_LIMIT:,} of them")
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


def environment() -> dict[str, Any]:
    """What a result was computed with."""
    packages = ("torch", "sigscale", "numpy")
    return {
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


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


@cache
def commit() -> str | None:
    """The commit of this checkout, followed by "-dirty" if files were changed since."""
    git = ["git", "-C", os.fspath(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """A temporary neighbor to write to, which then becomes `path`, whole and on the disk.

    An error leaves the old file as it was, and names `path` where the system names no file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        with suppress(OSError):  # systems that cannot flush a folder
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise
    finally:
        part.unlink(missing_ok=True)
