"""The command in processes that are killed, and in several that share the seeds."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from test_cifar10_command import arrays

SCRIPT = '''
"""The command with 70 + 30 images; `die` has the second process end when it has made an epoch."""
import os, sys
from cifar10 import split
from examples.cifar10 import cli, data
from examples.cifar10.data import Cifar10
from examples.cifar10.folder import Folder

data.load = lambda directory, allow_generated: Cifar10(split(70), split(30), "a test", "0")
if "die" in sys.argv and os.environ["RANK"] == "1":
    save = Folder.save
    Folder.save = lambda folder, run: (save(folder, run), print("ended by the test", flush=True), os._exit(3))
sys.exit(cli.main([argument for argument in sys.argv[1:] if argument != "die"]))
'''
OPTIONS = ["--epochs", "3", "--batch", "8", "--device", "cpu", "--figure", "2", "--seeds", "3"]


@pytest.fixture
def start(tmp_path):
    """Start the command with an output folder, by these words ahead of the script."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = os.path.dirname(os.path.dirname(__file__))
    environment = os.environ | {"PYTHONPATH": f"{root}/tests:{root}", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)

    def started(out, *more, launcher=(sys.executable,)):
        return subprocess.Popen(
            [*launcher, str(script), *OPTIONS, "--out", str(out), *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return started


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def finished(process):
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


@pytest.fixture
def whole(start, tmp_path):
    """All numbers of an undisturbed run."""
    assert finished(start(tmp_path / "whole"))[0] == 0
    return arrays(tmp_path / "whole")


def test_killed_at_any_moment(start, tmp_path, whole):
    """By a signal that cannot be caught, again and again until it comes through."""
    moments = random.Random(0)
    code, kills = None, 0
    while code is None:
        process = start(tmp_path / "parts", *(["--resume"] if kills else []))
        seen = progress(tmp_path / "parts")
        while process.poll() is None and (kills > 3 or progress(tmp_path / "parts") == seen):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            code, printed = finished(process)
    assert code == 0, printed
    assert kills
    assert arrays(tmp_path / "parts") == whole
    assert not list((tmp_path / "parts" / "checkpoints").glob("*.pt"))


def progress(out):
    """What changes with each epoch."""
    return {path: path.stat().st_mtime_ns for path in out.glob("*/*") if not path.name.startswith(".")}


def test_two_processes_divide_the_seeds(start, tmp_path, whole):
    code, printed = finished(start(tmp_path / "two", launcher=TORCHRUN))
    assert code == 0, printed
    found = arrays(tmp_path / "two")
    assert found.keys() == whole.keys()
    assert found["deep-tanh-seed00.npz"]["test_accuracy"] == whole["deep-tanh-seed00.npz"]["test_accuracy"]
    groups = {path.stem for path in (tmp_path / "two" / "gradients").glob("deep-tanh-seeds*")}
    assert groups == {"deep-tanh-seeds0-0", "deep-tanh-seeds1-2"}
    assert (tmp_path / "two" / "report.md").exists()


def test_a_process_that_dies_ends_all_and_the_rest_is_made_later(start, tmp_path):
    code, printed = finished(start(tmp_path / "two", "die", launcher=TORCHRUN))
    assert code != 0
    assert "ended by the test" in printed
    assert "exitcode  : 3" in printed
    assert not (tmp_path / "two" / "report.md").exists()
    code, printed = finished(start(tmp_path / "two", "--resume", launcher=TORCHRUN))
    assert code == 0, printed
    assert len(arrays(tmp_path / "two")) == 6
    assert finished(start(tmp_path / "undisturbed", launcher=TORCHRUN))[0] == 0
    assert arrays(tmp_path / "two") == arrays(tmp_path / "undisturbed")
