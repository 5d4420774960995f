"""The command in processes that are killed, also while they write, and in several that share the seeds."""

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.cifar10 import files
from examples.cifar10.beyond import ALSO
from examples.cifar10.errors import FolderError
from examples.cifar10.folder import Folder
from examples.cifar10.pipelines import FIGURES
from tests.examples.test_cifar10_command import arrays
from tests.oracles.cifar10 import dead

SCRIPT = '''
"""The command with 70 + 30 images; `die` has the second process end while it writes its second checkpoint."""
import os, sys
from tests.oracles.cifar10 import split
from examples.cifar10 import cli, data
from examples.cifar10.data import Cifar10

data.load = lambda directory, allow_generated: Cifar10(split(70), split(30), "a test", "0")
if "die" in sys.argv and os.environ["RANK"] == "1":
    replace, checkpoints = os.replace, []

    def die(part, path):
        checkpoints.extend([path] * (path.suffix == ".pt"))
        if len(checkpoints) == 2:
            os.truncate(part, 1000)
            print("ended by the test", flush=True)
            os._exit(3)
        replace(part, path)

    os.replace = die
sys.exit(cli.main([argument for argument in sys.argv[1:] if argument != "die"]))
'''
KILLS = '''
"""The command killed in the middle of one write after the other, and then left in peace.

Prints what each time was left half written.
"""
import json, os, signal, sys
from pathlib import Path
from tests.oracles.cifar10 import split
from examples.cifar10 import cli, data
from examples.cifar10.data import Cifar10

data.load = lambda directory, allow_generated: Cifar10(split(70), split(30), "a test", "0")
out = Path(sys.argv[sys.argv.index("--out") + 1])
replace = os.replace


def kill(part, path):
    if file in str(path):
        os.truncate(part, part.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, path)


def child():
    process = os.fork()
    if not process:
        os._exit(cli.main([*sys.argv[2:], "--resume"]))
    return process, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


os.replace, found = kill, []
for file in sys.argv[1].split():
    process, code = child()
    assert code == -signal.SIGKILL, (file, code)
    found.append([part.name.replace(str(process), "N") for part in out.rglob("*.part")])
os.replace = replace
assert child()[1] == 0
print(json.dumps(found))
'''
OPTIONS = ["--epochs", "3", "--batch", "8", "--device", "cpu", "--figure", "2", "--seeds", "3"]


@pytest.fixture
def start(tmp_path):
    """Start the command with an output folder, by these words ahead of the script."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)

    def started(out, *more, launcher=(sys.executable,), text=SCRIPT, first=()):
        script = tmp_path / "script.py"
        script.write_text(text)
        return subprocess.Popen(
            [*launcher, str(script), *first, *OPTIONS, "--out", str(out), *more],
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
    assert not list((tmp_path / "parts").rglob("*.part"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_writing(start, tmp_path, whole):
    """Any of the files: the next command deletes what is half there, and the results are the same."""
    files = "run.json gradients/. gradients/deep checkpoints/ seed00.npz seed01.json figure2.png report.md"
    code, printed = finished(start(tmp_path / "parts", text=KILLS, first=[files]))
    assert code == 0, printed
    assert json.loads(printed.splitlines()[-1]) == [
        [".run.json.N.part"],
        ["..deep-tanh-seeds0-2.npz.N.part.N.part"],
        [".deep-tanh-seeds0-2.npz.N.part"],
        [".deep-tanh-seeds0-2.pt.N.part"],
        [".deep-tanh-seed00.npz.N.part"],
        [".deep-tanh-seed01.json.N.part"],
        [".figure2.png.N.part"],
        [".report.md.N.part"],
    ]
    assert arrays(tmp_path / "parts") == arrays(tmp_path / "whole")
    names = [sorted(path.name for path in (tmp_path / out).rglob("*")) for out in ("parts", "whole")]
    assert names[0] == names[1]


class TestLeftovers:
    OURS = (
        ".run.json.{}.part",
        ".claims.json.{}.part",
        ".figure3-layers.svg.{}.part",
        ".also-alpha.png.{}.part",
        "runs/.combined-tanh-a2-r-seed07.json.{}.part",
        "gradients/..deep-tanh-seeds0-4,7-7.npz.1.part.{}.part",
        "gradients/.deep-tanh-seeds0-4,7-7.npz.{}.part",
        "checkpoints/.deep-tanh-seeds0-0.pt.{}.part",
    )
    OTHERS = (
        "run.json.{}.part",
        ".notes.md.{}.part",
        ".run.json.part",
        ".run.json.{}x.part",
        ".run.json.{}.part.bak",
        "runs/.run.json.{}.part",
        "runs/.deep-tanh-seed00 (copy).json.{}.part",
        "checkpoints/deeper/.deep-tanh-seeds0-0.pt.{}.part",
    )

    @pytest.fixture
    def planted(self, tmp_path):
        """Put files of these names and processes into a folder: what is left of them when asked."""
        folder = Folder(tmp_path)
        folder.begin({})
        (tmp_path / "checkpoints" / "deeper").mkdir()

        def plant(names, process):
            paths = [tmp_path / name.format(process) for name in names]
            for path in paths:
                path.touch()
            return lambda: [path for path in paths if path.exists()], paths

        return folder, plant

    def test_only_our_own_of_the_dead(self, planted):
        folder, plant = planted
        process = dead()
        ours, _ = plant(self.OURS, process)
        mine, _ = plant(self.OURS, os.getpid())  # a number that another machine, or container, gave before
        others, all_others = plant(self.OTHERS, process)
        living, all_living = plant(self.OURS, os.getppid())
        with folder.alone():
            assert not ours()
            assert not mine()
        assert others() == all_others
        assert living() == all_living

    def test_neither_links_nor_folders(self, planted, tmp_path):
        folder, plant = planted
        process = dead()
        _, (link, inner, *_) = plant(self.OURS, process)
        link.unlink()
        link.symlink_to(tmp_path / "run.json")
        inner.unlink()
        inner.mkdir()
        with folder.alone():
            assert link.is_symlink()
            assert inner.is_dir()

    def test_none_where_another_command_is_at_work(self, planted):
        folder, plant = planted
        with folder.alone():
            left, all_ = plant(self.OURS, dead())
            with pytest.raises(FolderError, match="another command is at work"), folder.alone():
                pass
            assert left() == all_

    def test_none_where_there_are_no_locks(self, planted, monkeypatch):
        """On Windows, and on file systems that know none: the command goes on, and deletes nothing."""
        folder, plant = planted
        left, all_ = plant(self.OURS, dead())

        def flock(file, operation):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(files.fcntl, "flock", flock)
        with folder.alone():
            assert left() == all_
        monkeypatch.setattr(files, "fcntl", None)
        with folder.alone():
            assert left() == all_

    def test_every_figure_has_its_pictures_cleared(self, planted):
        folder, plant = planted
        figures = [*FIGURES.values(), *ALSO.values()]
        left, _ = plant([f".{figure.name}{end}.{{}}.part" for figure in figures for end in ENDS], dead())
        with folder.alone():
            assert not left()


ENDS = (".png", ".svg", "-layers.png", "-layers.svg")


class TestDurable:
    def test_content_is_on_the_disk_before_it_has_its_name(self, tmp_path, monkeypatch):
        fsync, replace, events = os.fsync, os.replace, []
        monkeypatch.setattr(os, "fsync", lambda file: (events.append(os.fstat(file).st_ino), fsync(file)))
        monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
        path = tmp_path / "file"
        with files.durable(path) as part:
            part.write_text("new")
        assert events == [path.stat().st_ino, "replace", tmp_path.stat().st_ino]
        assert path.read_text() == "new"

    def test_what_cannot_be_flushed_does_not_replace(self, tmp_path, monkeypatch):
        def fsync(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        path = tmp_path / "file"
        path.write_text("old")
        monkeypatch.setattr(os, "fsync", fsync)
        with (
            pytest.raises(OSError, match=r"No space left on device: '.*/file'"),
            files.durable(path) as part,
        ):
            part.write_text("new")
        assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]

    def test_folder_that_cannot_be_flushed(self, tmp_path, monkeypatch):
        fsync = os.fsync

        def of_files(file):
            if stat.S_ISDIR(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            fsync(file)

        monkeypatch.setattr(os, "fsync", of_files)
        with files.durable(tmp_path / "file") as part:
            part.write_text("new")
        assert (tmp_path / "file").read_text() == "new"


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
    assert list((tmp_path / "two" / "checkpoints").glob(".*.part"))
    code, printed = finished(start(tmp_path / "two", "--resume", launcher=TORCHRUN))
    assert code == 0, printed
    assert len(arrays(tmp_path / "two")) == 6
    assert not list((tmp_path / "two").rglob("*.part"))
    assert finished(start(tmp_path / "undisturbed", launcher=TORCHRUN))[0] == 0
    assert arrays(tmp_path / "two") == arrays(tmp_path / "undisturbed")
