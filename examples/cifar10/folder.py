"""The output folder of one experiment: settings and data are one, pipelines and seeds may be added.

    run.json                              settings and the data's checksum
    runs/<pipeline>-seed<k>.json, .npz    of each finished run, see `results`
    gradients/<pipeline>-seeds<span>.npz  what the monitor of seeds trained together recorded
    checkpoints/<same>.pt                 their last complete epoch, from which more epochs can go on

A folder is never mixed with another experiment's, and continued only when asked to.  Each of these files is
written whole or not at all, and is on the disk before the next, in an order in which any may be the last.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sigscale as ss
from examples.cifar10 import results, spans
from examples.cifar10.beyond import ALSO
from examples.cifar10.errors import FolderError
from examples.cifar10.files import delete_leftovers, durable, locked
from examples.cifar10.pipelines import FIGURES
from examples.cifar10.results import DAMAGED
from examples.cifar10.train import Run

INNER = ("runs", "gradients", "checkpoints")

_PICTURES = "|".join(re.escape(figure.name) for figure in (*FIGURES.values(), *ALSO.values()))
_GRADIENTS = r"[\w-]+-seeds[0-9,-]+\.npz"
WRITTEN = {
    ".": rf"run\.json|report\.md|claims\.json|(?:{_PICTURES})(?:-layers)?\.(?:png|svg)",
    "runs": r"[\w-]+-seed[0-9]+\.(?:npz|json)",
    "gradients": rf"{_GRADIENTS}|\.{_GRADIENTS}\.[0-9]+\.part",
    "checkpoints": r"[\w-]+-seeds[0-9,-]+\.pt",
}
"""What this command writes where, as regular expressions; a monitor's file has a temporary one of its own."""


@dataclass(frozen=True)
class Folder:
    path: Path

    def check(self, experiment: Mapping[str, Any], *, resume: bool) -> None:
        """Raise FolderError unless `experiment` may begin here (or, with `resume`, go on); write nothing."""
        self._check_writable()
        if not self._identity.exists():
            if foreign := [name for name in INNER if (self.path / name).exists()]:
                raise FolderError(
                    f"{self.path}: {foreign[0]} is there, but not the run.json of the run that wrote it. "
                    "Name another folder with --out."
                )
            return
        self._check_same(experiment, self.identity(), more_epochs=resume)
        if not resume:
            raise FolderError(
                f"{self.path}: holds runs of these settings. Continue, extend or report them with "
                "--resume, or name another folder with --out."
            )

    def begin(self, experiment: Mapping[str, Any]) -> None:
        """Make the folder and say in it what `experiment` it is of."""
        self.path.mkdir(parents=True, exist_ok=True)
        about = {**experiment, "commit": results.commit()}
        with durable(self._identity) as part:  # first: without it a folder counts as foreign
            part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for inner in INNER:
            (self.path / inner).mkdir(exist_ok=True)

    def finished(self, pipeline: str, seed: int, epochs: int) -> bool:
        """Whether there are results, of as many epochs."""
        path = self.path / "runs" / f"{results.stem(pipeline, seed)}.json"
        return path.exists() and results.epochs(path) == epochs

    def begun(self, pipeline: str) -> list[tuple[int, ...]]:
        """The seeds of each checkpoint."""
        return [seeds for seeds, _ in _groups(self.path / "checkpoints", pipeline, ".pt")]

    def save(self, run: Run) -> None:
        with durable(self._gradients(run)) as part:  # first: what is ahead of the checkpoint can be cut off
            run.monitor.save(part)
        content = io.BytesIO()  # torch.save has no OSError for a full disk
        torch.save({**run.state_dict(), "device": device_name(run.device)}, content)
        with durable(self._checkpoint(run)) as part:
            part.write_bytes(content.getbuffer())

    def restore(self, run: Run) -> None:
        """Put `run` where it was after its last complete epoch; leave it alone if it never got that far."""
        checkpoint = self._checkpoint(run)
        if not checkpoint.exists():
            return
        path = checkpoint
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            self._check_device(path, state["device"], run.device)
            run.load_state_dict(state)
            path = self._gradients(run)
            run.load_gradients(path)
        except FolderError:
            raise
        except (*DAMAGED, RuntimeError, pickle.UnpicklingError) as error:
            raise FolderError(
                f"{path}: missing or damaged ({type(error).__name__}). "
                f"Delete {checkpoint}: its runs then start anew."
            ) from error

    def finish(self, run: Run, experiment: Mapping[str, Any]) -> None:
        """Write the results of each seed."""
        about = {**experiment, "device": device_name(run.device)}
        results.write(self.path / "runs", run, about)

    def outcomes(self, pipelines: Iterable[str], epochs: int) -> list[results.Outcome]:
        """All finished runs of the pipelines, whoever made them."""
        return [
            results.read(self.path / "runs", pipeline, seed)
            for pipeline in pipelines
            for seed in self._finished_seeds(pipeline)
            if self.finished(pipeline, seed, epochs)
        ]

    def histories(self, pipeline: str, outcomes: Iterable[results.Outcome]) -> list[ss.GradientHistory]:
        """What was recorded of each group of seeds that were finished together, as the outcomes say."""
        groups = {o.seed: o.about.get("trained_with_seeds") for o in outcomes if o.pipeline == pipeline}
        found = []
        for seeds, path in _groups(self.path / "gradients", pipeline, ".npz"):
            if all(groups.get(seed) == list(seeds) for seed in seeds):
                try:
                    found.append(ss.GradientHistory.load(path))
                except DAMAGED as error:
                    raise FolderError(
                        f"{path}: damaged ({type(error).__name__}). Delete it: its seeds are then left out "
                        "of the picture of layers; with their files in runs/ deleted, they are made again."
                    ) from error
        return found

    def copies(self, others: Iterable[Path], experiment: Mapping[str, Any]) -> dict[Path, Path]:
        """The files of finished runs in other folders of `experiment` that are not here: target -> source."""
        found: dict[Path, Path] = {}
        for other in map(Folder, others):
            if not other._identity.exists():
                raise FolderError(f"{other.path}: holds no runs. Name a folder that this command wrote.")
            other._check_same(experiment, other.identity())
            jsons = sorted((other.path / "runs").glob("*.json"))
            arrays = [path.with_suffix(".npz") for path in jsons]
            for source in (*sorted((other.path / "gradients").glob("*.npz")), *arrays, *jsons):
                target = self.path / source.relative_to(other.path)
                there = target if target.exists() else found.setdefault(target, source)
                if there != source and source in arrays and source.read_bytes() != there.read_bytes():
                    raise FolderError(
                        f"{source} and {there} are different results of one run. Keep the one you trust."
                    )
        return found

    def copy(self, copies: Mapping[Path, Path]) -> None:
        """Results' JSON last, which says that a run is there."""
        for target, source in sorted(copies.items(), key=lambda pair: pair[0].suffix == ".json"):
            with durable(target) as part:
                shutil.copyfile(source, part)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """FolderError if another command is at work in the folder; where the system has no locks, never.

        Under the lock what killed commands left half written is deleted: enter before others write here.
        """
        with ExitStack() as stack:
            try:
                held = stack.enter_context(locked(self.path))
            except BlockingIOError as error:
                raise FolderError(
                    f"{self.path}: another command is at work here. Wait for it, or give this one an --out "
                    "of its own, which --merge can add later."
                ) from error
            if held:
                for inner, names in WRITTEN.items():
                    delete_leftovers(self.path / inner, names)
            yield

    def identity(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._identity.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise FolderError(
                f"{self._identity}: not readable as JSON ({error}). Name another folder with --out."
            ) from error

    @property
    def _identity(self) -> Path:
        return self.path / "run.json"

    def _finished_seeds(self, pipeline: str) -> list[int]:
        names = [path.stem for path in (self.path / "runs").glob(f"{pipeline}-seed*.json")]
        numbers = [name.removeprefix(f"{pipeline}-seed") for name in names]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _checkpoint(self, run: Run) -> Path:
        return self.path / "checkpoints" / f"{run.pipeline.name}-seeds{spans.name(run.seeds)}.pt"

    def _gradients(self, run: Run) -> Path:
        return self.path / "gradients" / f"{run.pipeline.name}-seeds{spans.name(run.seeds)}.npz"

    def _check_same(
        self, one: Mapping[str, Any], there: Mapping[str, Any], *, more_epochs: bool = False
    ) -> None:
        changed = [
            f"{key} {there.get(key)!r} there, {value!r} now"
            for key, value in one.items()
            if there.get(key) != value and not (key == "epochs" and there[key] < value and more_epochs)
        ]
        if changed:
            raise FolderError(
                f"{self.path}: holds another run ({'; '.join(changed)}). "
                "Name another folder with --out, or repeat that run's options."
            )

    def _check_device(self, path: Path, there: str, now: torch.device) -> None:
        if there != device_name(now):
            raise FolderError(
                f"{path}: was begun on {there}, this is {device_name(now)}, and the result would be that of "
                "neither. Go on there (--device), or delete the file: its runs then start anew."
            )

    def _check_writable(self) -> None:
        existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise FolderError(f"{self.path}: {existing} is not a folder. Name another one with --out.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise FolderError(f"{self.path}: no permission to write in {existing}. Name another --out.")


def _groups(folder: Path, pipeline: str, suffix: str) -> Iterator[tuple[tuple[int, ...], Path]]:
    """The files of groups of seeds; others, such as copies by hand, are left alone."""
    for path in sorted(folder.glob(f"{pipeline}-seeds*{suffix}")):
        try:
            yield spans.parse(path.stem.removeprefix(f"{pipeline}-seeds")), path
        except ValueError:
            continue


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
