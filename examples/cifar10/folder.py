"""The output folder of one experiment: settings and data are one, pipelines and seeds may be added.

    run.json                              settings and the data's checksum
    runs/<pipeline>-seed<k>.json, .npz    of each finished run, see `results`
    gradients/<pipeline>-seeds<span>.npz  what the monitor of seeds trained together recorded
    checkpoints/<same>.pt                 their last complete epoch, until they are finished

A folder is never mixed with another experiment's, and continued only when asked to.  Every file is written
whole or not at all, in an order in which any of them may be the last.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sigscale as ss
from examples.cifar10 import results, spans
from examples.cifar10.errors import FolderError
from examples.cifar10.train import Run
from sigscale.files import atomic

INNER = ("runs", "gradients", "checkpoints")


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
        self._check_same(experiment, self.identity())
        if not resume:
            raise FolderError(
                f"{self.path}: holds runs of these settings. Continue, extend or report them with "
                "--resume, or name another folder with --out."
            )

    def begin(self, experiment: Mapping[str, Any]) -> None:
        """Make the folder and say in it what `experiment` it is of."""
        for inner in INNER:
            (self.path / inner).mkdir(parents=True, exist_ok=True)
        with atomic(self._identity) as part:
            part.write_text(json.dumps(experiment, indent=2) + "\n", encoding="utf-8")

    def finished(self, pipeline: str, seed: int) -> bool:
        return (self.path / "runs" / f"{results.stem(pipeline, seed)}.json").exists()

    def begun(self, pipeline: str) -> list[tuple[int, ...]]:
        """The seeds of each checkpoint."""
        found = sorted((self.path / "checkpoints").glob(f"{pipeline}-seeds*.pt"))
        return [spans.parse(path.stem.removeprefix(f"{pipeline}-seeds")) for path in found]

    def save(self, run: Run) -> None:
        run.monitor.save(self._gradients(run))  # first: what is ahead of the checkpoint can be cut off
        with atomic(self._checkpoint(run)) as part:
            torch.save({**run.state_dict(), "device": device_name(run.device)}, part)

    def restore(self, run: Run) -> None:
        """Put `run` where it was after its last complete epoch; leave it alone if it never got that far."""
        checkpoint = self._checkpoint(run)
        if not checkpoint.exists():
            return
        path = checkpoint
        try:
            state = torch.load(path, weights_only=True, map_location=run.device)
            self._check_device(path, state["device"], run.device)
            run.load_state_dict(state)
            path = self._gradients(run)
            run.load_gradients(path)
        except FolderError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise FolderError(
                f"{path}: missing or damaged ({type(error).__name__}). "
                f"Delete {checkpoint}: its runs then start anew."
            ) from error

    def finish(self, run: Run, experiment: Mapping[str, Any]) -> None:
        """Write the results of each seed and drop the checkpoint."""
        about = {**experiment, "device": device_name(run.device)}
        results.write(self.path / "runs", run, about)
        self._checkpoint(run).unlink(missing_ok=True)

    def outcomes(self, pipelines: Iterable[str]) -> list[results.Outcome]:
        """All finished runs of the pipelines, whoever made them."""
        return [
            results.read(self.path / "runs", pipeline, seed)
            for pipeline in pipelines
            for seed in self._finished_seeds(pipeline)
        ]

    def histories(self, pipeline: str) -> list[ss.GradientHistory]:
        """What was recorded of each group of seeds, finished or not."""
        found = sorted((self.path / "gradients").glob(f"{pipeline}-seeds*.npz"))
        return [ss.GradientHistory.load(path) for path in found]

    def merge(self, others: Iterable[Path]) -> None:
        """Copy the finished runs of other folders of this experiment; raises FolderError before any copy."""
        copies = [copy for other in others for copy in self._copies(Folder(other))]
        for source, target in copies:
            with atomic(target) as part:
                shutil.copyfile(source, part)

    def _copies(self, other: Folder) -> Iterator[tuple[Path, Path]]:
        """Files to copy from another folder, results' JSON last."""
        if not other._identity.exists():
            raise FolderError(f"{other.path}: holds no runs. Name a folder that this command wrote.")
        other._check_same(self.identity(), other.identity())
        jsons = list((other.path / "runs").glob("*.json"))
        arrays = [path.with_suffix(".npz") for path in jsons]
        for source in (*(other.path / "gradients").glob("*.npz"), *arrays, *jsons):
            target = self.path / source.relative_to(other.path)
            if not target.exists():
                yield source, target
            elif source in arrays and source.read_bytes() != target.read_bytes():
                raise FolderError(
                    f"{source} and {target} are different results of one run. Keep the one you trust."
                )

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
        return sorted(int(name.removeprefix(f"{pipeline}-seed")) for name in names)

    def _checkpoint(self, run: Run) -> Path:
        return self.path / "checkpoints" / f"{run.pipeline.name}-seeds{spans.name(run.seeds)}.pt"

    def _gradients(self, run: Run) -> Path:
        return self.path / "gradients" / f"{run.pipeline.name}-seeds{spans.name(run.seeds)}.npz"

    def _check_same(self, one: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        changed = [
            f"{key} {there.get(key)!r} there, {value!r} now"
            for key, value in one.items()
            if there.get(key) != value
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


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
