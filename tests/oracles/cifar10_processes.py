"""The CIFAR-10 command with 70 + 30 images in processes of its own, forked from one that has imported it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from examples.cifar10 import __main__ as command
from examples.cifar10 import data, figures
from examples.cifar10.data import Cifar10
from tests.oracles.cifar10 import split
from tests.oracles.processes import FORKS, SHARED

OPTIONS = ["--epochs", "3", "--batch", "8", "--device", "cpu", "--figure", "2", "--seeds", "3"]
FORKS.set_forkserver_preload([*SHARED, __name__])


class Process:
    """The command with an output folder, from its start; `killed_in` as for `run`.

    Args:
        divided: by two processes, as torchrun starts them.
        drawn: with pictures, which take seconds.
    """

    def __init__(self, out: Path, *more: str, divided=False, drawn=False, killed_in="") -> None:
        self._log = out.with_suffix(".log")
        arguments = [*OPTIONS, "--out", str(out), *more], drawn, killed_in
        self._process = FORKS.Process(target=_logged, args=(self._log, divided, arguments))
        self._process.start()
        self.pid, self.kill, self.running = self._process.pid, self._process.kill, self._process.is_alive

    def finished(self) -> tuple[int, str]:
        """The exit status and what was printed."""
        self._process.join(300)
        return self._process.exitcode, self._log.read_text()


def _logged(log: Path, divided: bool, arguments: tuple) -> None:
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    gc.freeze()
    if divided:
        where = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(uuid.uuid4())}
        elastic_launch(LaunchConfig(1, 1, 2, start_method="fork", max_restarts=0, **where), run)(*arguments)
    else:
        run(*arguments)


def run(argv: list[str], drawn: bool, killed_in: str) -> None:
    """The command; half way through writing a file with the word `killed_in` in its path, it is killed.

    For the word "second state", the second of two processes instead ends when it writes its second state.
    """
    replace, states = os.replace, []

    def kill(part, path):
        if killed_in in str(path):
            os.truncate(part, part.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(part, path)

    def die(part, path):
        states.extend([path] * (path.suffix == ".pt"))
        if len(states) == 2 and os.environ["RANK"] == "1":
            os.truncate(part, 1000)
            print("ended by the test", flush=True)
            os._exit(3)
        replace(part, path)

    data.load = lambda directory, allow_generated: Cifar10(split(70), split(30), "a test", "0")
    if killed_in:
        os.replace = die if killed_in == "second state" else kill
    if not drawn:
        figures.draw = figures.draw_layers = figures.draw_escapes = lambda *arguments, **texts: None
    if code := command.main(argv):
        sys.exit(code)
