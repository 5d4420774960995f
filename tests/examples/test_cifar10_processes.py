"""The command in processes that are killed, also while they write, and in several that share the seeds."""

import errno
import os
import random
import signal
import time
from argparse import ArgumentTypeError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.cifar10.runtime import FolderError
from examples.cifar10.store import Folder, parse_seeds, plan, seed_ranges
from examples.common import durable
from tests.examples.test_cifar10_command import arrays, stems
from tests.oracles.cifar10 import RELU, TANH
from tests.oracles.cifar10_processes import Process

WRONG = "0 -1 1- - 5-4 a 1,2 1.5 0-99999 1-2-3 0-1, 999999999999 ²"
SEEDS = st.sets(st.integers(0, 60), min_size=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    return undisturbed(tmp_path_factory.mktemp("whole") / "one", drawn=True)


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """The folder of an undisturbed run by two processes."""
    return undisturbed(tmp_path_factory.mktemp("divided") / "two", divided=True)


def undisturbed(folder, *more, **options):
    code, printed = Process(folder, *more, **options).finished()
    assert code == 0, printed
    return folder


@pytest.mark.long
def test_killed_at_any_moment(tmp_path, whole):
    """By a signal that cannot be caught, again and again until it comes through."""
    moments, out = random.Random(0), tmp_path / "parts"
    code, kills = None, 0
    while code is None:
        process = Process(out, *(["--resume"] if (out / "run.json").exists() else []))
        seen = progress(out)
        while process.running() and (kills > 1 or progress(out) == seen):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        if process.running():
            process.kill()
            process.finished()
            kills += 1
        else:
            code, printed = process.finished()
    assert code == 0, printed
    assert kills
    assert arrays(out) == arrays(whole)
    assert not list(out.rglob("*.part"))


def progress(out):
    """What changes with each epoch."""
    return {path: path.stat().st_mtime_ns for path in out.glob("state/*") if not path.name.startswith(".")}


@pytest.mark.long
def test_killed_while_writing(tmp_path, whole):
    """Any of the files: the next command deletes what is half there, and the results are the same."""
    out, resumed = tmp_path / "parts", ()
    names = ["run.json", "deep-tanh-seeds0-2.pt", "runs.npz", "figure2.png", "report.md"]
    for word, name in zip(("run.json", "deep-tanh-seeds", *names[2:]), names, strict=True):
        process = Process(out, *resumed, drawn=True, killed_in=word)
        code, printed = process.finished()
        assert code == -signal.SIGKILL, printed
        assert [part.name for part in out.rglob("*.part")] == [f".{name}.{process.pid}.part"]
        resumed = ["--resume"] if (out / "run.json").exists() else []
    undisturbed(out, *resumed, drawn=True)
    assert arrays(out) == arrays(whole)
    found = [sorted(path.name for path in folder.rglob("*")) for folder in (out, whole)]
    assert found[0] == found[1]


@pytest.mark.long
def test_two_processes_divide_the_seeds(divided, whole):
    assert stems(divided) == [
        f"{name}-seeds{seeds}" for name in ("deep-tanh-a2", "deep-tanh") for seeds in ("0-1", "2-2")
    ]
    one, both = arrays(whole), arrays(divided)
    accuracy = [row[2:] for row in one["deep-tanh-seeds0-2/test_accuracy"]]
    assert both["deep-tanh-seeds2-2/test_accuracy"] == accuracy
    assert (divided / "report.md").exists()


@pytest.mark.long
def test_a_process_that_dies_ends_all_and_the_rest_is_made_later(tmp_path, divided):
    out = tmp_path / "two"
    code, printed = Process(out, divided=True, killed_in="second state").finished()
    assert code != 0
    assert "ended by the test" in printed
    assert "exitcode  : 3" in printed
    assert not (out / "report.md").exists()
    assert list((out / "state").glob(".*.part"))
    undisturbed(out, "--resume", divided=True)
    assert not list(out.rglob("*.part"))
    assert arrays(out) == arrays(divided)


class TestLeftovers:
    OURS = (".run.json.7.part", "state/.deep-tanh-seeds0-4,7-7.pt.7.part")
    OTHERS = ("run.json.7.part", ".run.json.7x.part", "state/.run.part")

    @pytest.fixture
    def folder(self, tmp_path):
        folder = Folder(tmp_path)
        folder.begin({})
        for name in (*self.OURS, *self.OTHERS):
            (tmp_path / name).touch()
        return folder

    def left(self, folder, names):
        return [name for name in names if (folder.path / name).exists()]

    def test_only_our_own(self, folder):
        with folder.alone():
            assert not self.left(folder, self.OURS)
            assert self.left(folder, self.OTHERS) == [*self.OTHERS]

    def test_none_while_another_command_is_at_work(self, folder):
        with folder.alone():
            (folder.path / self.OURS[0]).touch()
            with pytest.raises(FolderError, match="another command is at work"), folder.alone():
                pass
            assert self.left(folder, self.OURS)


class TestDurable:
    def test_content_is_on_the_disk_before_it_has_its_name(self, tmp_path, monkeypatch):
        fsync, replace, events = os.fsync, os.replace, []
        monkeypatch.setattr(os, "fsync", lambda file: (events.append(os.fstat(file).st_ino), fsync(file)))
        monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
        path = tmp_path / "file"
        with durable(path) as part:
            part.write_text("new")
        assert events == [path.stat().st_ino, "replace"]
        assert path.read_text() == "new"

    def test_what_cannot_be_flushed_does_not_replace(self, tmp_path, monkeypatch):
        def fsync(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        path = tmp_path / "file"
        path.write_text("old")
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"No space left on device: '.*/file'"), durable(path) as part:
            part.write_text("new")
        assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


class TestPlan:
    @given(SEEDS)
    def test_ranges_are_read_back(self, seeds):
        assert parse_seeds(seed_ranges(seeds)) == tuple(sorted(seeds))

    @pytest.mark.parametrize(
        ("text", "seeds"),
        [("3", (0, 1, 2)), ("7-7", (7,)), ("4-5,1-2,2-4", (1, 2, 3, 4, 5)), ("0-0", (0,))],
    )
    def test_ranges(self, text, seeds):
        assert parse_seeds(text) == seeds

    def test_wrong_ranges(self):
        message = "must be how many, such as 25, or ranges, such as 0-9,20-24"
        for text in ("", *WRONG.split()):
            with pytest.raises(ArgumentTypeError, match=message):
                parse_seeds(text)

    def planned(self, seeds, done=(), begun=(), **options):
        finished = {(TANH.name, seed) for seed in done}
        groups = {TANH.name: list(begun), RELU.name: []}
        return plan([TANH, RELU], seeds, finished, groups.__getitem__, **options)

    def test_groups_of_nearly_the_same_size(self):
        ((one, two, three, *_),) = self.planned(range(25), together=10)
        assert [len(seeds) for _, seeds in (one, two, three)] == [9, 8, 8]

    def test_what_was_begun_goes_on_as_it_was(self):
        jobs = self.planned(range(6), done={0}, begun=[(1, 2), (8, 9)], together=25)
        assert jobs == [[(TANH, (1, 2)), (TANH, (3, 4, 5)), (RELU, tuple(range(6)))]]

    @given(SEEDS, st.sets(st.integers(0, 60)), st.integers(1, 9), st.integers(1, 5))
    def test_each_seed_that_is_not_finished_is_trained_once(self, seeds, done, together, world):
        begun = [(0, 1, 2), (7, 30)]
        jobs = self.planned(sorted(seeds), done, begun, together=together, world=world)
        assert len(jobs) == world
        for pipeline, finished in ((TANH, done), (RELU, set())):
            trained = [seed for part in jobs for p, group in part if p == pipeline for seed in group]
            assert len(trained) == len(set(trained))
            assert seeds - finished <= set(trained)
            assert not set(trained) - seeds - {seed for group in begun for seed in group}
        assert all(len(group) <= together for part in jobs for _, group in part if group not in begun)
        shares = [sum(len(group) for p, group in part if p == RELU) for part in jobs]
        assert max(shares) - min(shares) <= 1
