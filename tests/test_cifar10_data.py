"""CIFAR-10 on disk: both layouts, folders and archives, every kind of damage, and the download."""

import contextlib
import errno
import functools
import hashlib
import http.server
import io
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar10 import dead
from examples.cifar10 import cli, data, download, layouts
from examples.cifar10.errors import DataError, DownloadError

RECORDS = 40
FILES = (*layouts.TRAIN, layouts.TEST)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(layouts, "RECORDS", RECORDS)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A cache folder and a working directory without data, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    return tmp_path


def batch(index):
    rng = np.random.default_rng(index)
    records = rng.integers(0, 256, (RECORDS, 1 + layouts.PIXELS), dtype=np.uint8)
    records[:, 0] %= 10
    return records


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: byte strings where Python 3 has str or bytes, numpy under its old name."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, value):
        raw = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def as_python(records, dump=python2_pickle):
    return dump({"labels": records[:, 0].tolist(), "data": records[:, 1:].copy()})


def write(layout, folder, encode):
    target = folder / layout.folder
    target.mkdir(parents=True)
    for index, name in enumerate(FILES):
        (target / (name + layout.suffix)).write_bytes(encode(batch(index)))
    return target


def write_binary(folder):
    return write(layouts.BINARY, folder, np.ndarray.tobytes)


def pack(layout, folder):
    archive = folder / layout.archive
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / layout.folder, layout.folder)
    return archive


@pytest.mark.usefixtures("small")
class TestLayouts:
    def check(self, cifar):
        assert cifar.train.images.shape == (5 * RECORDS, 3, 32, 32)
        assert cifar.train.images.is_contiguous(memory_format=torch.channels_last)
        assert cifar.test.labels.tolist() == batch(5)[:, 0].tolist()
        assert torch.equal(cifar.test.images, torch.from_numpy(batch(5)[:, 1:].reshape(-1, 3, 32, 32)))
        assert torch.equal(cifar.train.labels[RECORDS : 2 * RECORDS], torch.from_numpy(batch(1)[:, 0]).long())
        whole = b"".join(batch(index).tobytes() for index in range(6))
        assert cifar.sha256 == hashlib.sha256(whole).hexdigest()
        assert not cifar.generated

    def test_binary_folder_named_or_holding(self, tmp_path):
        folder = write_binary(tmp_path)
        self.check(data.load(folder))
        self.check(data.load(tmp_path))

    @pytest.mark.parametrize(
        "dump", [python2_pickle, functools.partial(pickle.dumps, protocol=2), pickle.dumps]
    )
    def test_python_folder(self, tmp_path, dump):
        write(layouts.PYTHON, tmp_path, functools.partial(as_python, dump=dump))
        self.check(data.load(tmp_path))

    @pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.archive)
    def test_archive_is_read_in_place(self, tmp_path, layout):
        write(layout, tmp_path / "made", np.ndarray.tobytes if layout is layouts.BINARY else as_python)
        archive = pack(layout, tmp_path / "made")
        place = tmp_path / "place"
        place.mkdir()
        archive = archive.rename(place / layout.archive)
        self.check(data.load(place))
        self.check(data.load(archive))
        assert list(place.iterdir()) == [archive]

    def test_usual_places(self, nowhere):
        write_binary(nowhere / "data")
        self.check(data.load(None))
        write_binary(data.cache_folder())
        assert data.load(None).source == str(data.cache_folder() / "cifar-10-batches-bin")


def damage(folder, change):
    change(write_binary(folder) / "data_batch_3.bin")


@pytest.mark.usefixtures("small")
class TestDamage:
    def test_truncated(self, tmp_path):
        damage(tmp_path, lambda file: file.write_bytes(file.read_bytes()[:-1]))
        with pytest.raises(
            DataError, match=r"data_batch_3\.bin: 122,919 bytes; .* 40 records x 3,073 bytes = 122,920"
        ):
            data.load(tmp_path)

    def test_label_out_of_range(self, tmp_path):
        records = batch(2)
        records[7, 0] = 10
        damage(tmp_path, lambda file: file.write_bytes(records.tobytes()))
        with pytest.raises(
            DataError, match=r"data_batch_3\.bin: record 7 has label 10; .* 0 to 9\. Replace it"
        ):
            data.load(tmp_path)

    def test_missing(self, tmp_path):
        damage(tmp_path, lambda file: file.unlink())
        with pytest.raises(DataError, match=r"data_batch_3\.bin missing.*the 6 files data_batch_1\.bin"):
            data.load(tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match=r"no CIFAR-10 there.*cifar-10-batches-bin.*Correct --data"):
            data.load(tmp_path, allow_generated=True)

    def test_truncated_archive(self, tmp_path):
        write_binary(tmp_path)
        archive = pack(layouts.BINARY, tmp_path)
        archive.write_bytes(archive.read_bytes()[:50_000])
        with pytest.raises(DataError, match=r"binary\.tar\.gz: not a whole .tar.gz archive .*50,000 bytes"):
            data.load(archive)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (as_python(batch(2))[:-500], "unreadable .*a pickled dict of data, uint8"),
            (pickle.dumps([1, 2]), "data and labels not found"),
            (pickle.dumps({"data": batch(2)[:, 1:]}), "data and labels not found"),
            (
                as_python(batch(2)[:-1]),
                r"data is uint8 \(39, 3072\), labels are int64 \(39,\); .*uint8 \(40, 3,072\)",
            ),
            (pickle.dumps(print), "it asks for builtins.print, which no CIFAR-10 batch needs"),
            (as_python(batch(2).astype(np.int64) + 1), "data is int64"),
        ],
    )
    def test_python_layout(self, tmp_path, content, message):
        (write(layouts.PYTHON, tmp_path, as_python) / "data_batch_3").write_bytes(content)
        with pytest.raises(DataError, match="data_batch_3: .*" + message):
            data.load(tmp_path)


def test_official_size_is_asked_for(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in FILES:
        (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(b"<html>")
    with pytest.raises(
        DataError, match=r"6 bytes; a batch is 10,000 records x 3,073 bytes = 30,730,000 bytes"
    ):
        data.load(tmp_path)


@contextlib.contextmanager
def serving(folder, handler=http.server.SimpleHTTPRequestHandler):
    class Quiet(handler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        server.shutdown()


class Half(http.server.SimpleHTTPRequestHandler):
    """Announces the whole and sends its first 1,000 bytes."""

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(1000))


class Reset(Half):
    """The same, and breaks the connection instead of closing it."""

    def copyfile(self, source, outputfile):
        super().copyfile(source, outputfile)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Chunked(Half):
    """The same in chunks, none of them the last."""

    protocol_version = "HTTP/1.1"

    def send_header(self, keyword, value):
        chunked = keyword == "Content-Length"
        super().send_header(*(("Transfer-Encoding", "chunked") if chunked else (keyword, value)))

    def copyfile(self, source, outputfile):
        outputfile.write(b"3e8\r\n" + source.read(1000) + b"\r\n")
        self.close_connection = True


class Unannounced(Half):
    """The same without saying how much there is."""

    def send_header(self, keyword, value):
        if keyword != "Content-Length":
            super().send_header(keyword, value)


class Absent(Half):
    def do_GET(self):
        self.send_error(404)


class Waits(http.server.SimpleHTTPRequestHandler):
    """Sends the first half, and the second one when `go` is set."""

    go: threading.Event
    requests: list[str]

    def copyfile(self, source, outputfile):
        content = source.read()
        self.requests.append(self.path)
        outputfile.write(content[: len(content) // 2])
        outputfile.flush()
        self.go.wait(60)
        with contextlib.suppress(OSError):
            outputfile.write(content[len(content) // 2 :])


LOAD = """
import sys
from examples.cifar10 import data, download, layouts

layouts.RECORDS, download.URL, download.MD5 = int(sys.argv[1]), *sys.argv[2:]
print(data.load(None).sha256)
"""


def loading(folder, url, archive):
    """A process that loads the data, with `folder` as its working directory and the cache in it."""
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(RECORDS), url, hashlib.md5(archive.read_bytes()).hexdigest()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root), "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def files(folder):
    """Names of all but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.fixture
def archive(tmp_path):
    write_binary(tmp_path / "server")
    return pack(layouts.BINARY, tmp_path / "server")


@pytest.fixture
def served(monkeypatch, nowhere, archive):
    """An archive that the download finds."""
    with serving(archive.parent) as url:
        monkeypatch.setattr(download, "URL", url)
        monkeypatch.setattr(download, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        yield archive


@pytest.mark.usefixtures("small")
class TestDownload:
    def test_good(self, served):
        first = data.load(None)
        assert files(data.cache_folder()) == [served.name]
        assert (data.cache_folder() / served.name).read_bytes() == served.read_bytes()
        served.unlink()
        assert data.load(None).sha256 == first.sha256

    def test_wrong_checksum_leaves_nothing(self, monkeypatch, served):
        monkeypatch.setattr(download, "MD5", "c32a1d4ab5d03f1284b67883e8d87530")
        with pytest.raises(DataError, match=r"has MD5 [0-9a-f]{32}, the official archive has c32a1d4a"):
            data.load(None, allow_generated=True)
        assert files(data.cache_folder()) == []

    @pytest.mark.parametrize(
        ("handler", "message"),
        [
            (Half, r"broke off after 1,000 of [\d,]+ bytes|IncompleteRead"),
            (Reset, r"broke off after [\d,]+ of [\d,]+ bytes|IncompleteRead|reset"),
            (Chunked, r"IncompleteRead"),
            (Absent, r"download failed \(HTTP Error 404: Not Found\)"),
        ],
    )
    def test_network_fails(self, monkeypatch, nowhere, archive, handler, message):
        with serving(archive.parent, handler) as url:
            monkeypatch.setattr(download, "URL", url)
            with pytest.raises(DownloadError, match=rf"(?:{message}).*[Tt]ry again"):
                data.load(None)
            cifar = data.load(None, allow_generated=True)
        assert cifar.generated
        assert re.search(message, cifar.why_generated)
        assert files(data.cache_folder()) == []

    def test_truncated_without_a_word_of_its_size(self, monkeypatch, nowhere, archive):
        with serving(archive.parent, Unannounced) as url:
            monkeypatch.setattr(download, "URL", url)
            with pytest.raises(DataError, match=r"what arrived \(1,000 bytes\) has MD5 .*Try again"):
                data.load(None)
        assert files(data.cache_folder()) == []

    def test_no_network(self, nowhere):
        with pytest.raises(DownloadError, match=r"download failed .*--data DIR"):
            data.load(None)

    def test_killed_and_started_again(self, monkeypatch, nowhere, archive):
        """What is half there disappears; files with other names, or of processes that live, do not."""
        cache = data.cache_folder()
        cache.mkdir(parents=True)
        others = [
            f".{archive.name}.{os.getppid()}.part",
            f".{archive.name}.part",
            f"{archive.name}.{dead()}.part",
            f".another.{dead()}.part",
        ]
        for name in others:
            (cache / name).touch()
        monkeypatch.setattr(Waits, "go", threading.Event(), raising=False)
        monkeypatch.setattr(Waits, "requests", [], raising=False)
        with serving(archive.parent, Waits) as url:
            process = loading(nowhere, url, archive)
            part = cache / f".{archive.name}.{process.pid}.part"
            until(lambda: part.exists() and Waits.requests, process)
            process.kill()
            process.communicate()
            assert part.exists()
            Waits.go.set()
            process = loading(nowhere, url, archive)
            printed, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
        assert files(cache) == sorted([archive.name, *others])
        assert printed.strip() == data.load(archive).sha256

    def test_leftovers_beside_data_that_is_there(self, served):
        data.load(None)
        (data.cache_folder() / f".{served.name}.{dead()}.part").touch()
        data.load(None)
        assert files(data.cache_folder()) == [served.name]

    def test_two_at_a_time(self, monkeypatch, nowhere, archive):
        """The second one waits for the first, and takes what it has fetched."""
        monkeypatch.setattr(Waits, "go", threading.Event(), raising=False)
        monkeypatch.setattr(Waits, "requests", [], raising=False)
        with serving(archive.parent, Waits) as url:
            first = loading(nowhere, url, archive)
            until(lambda: Waits.requests, first)
            second = loading(nowhere, url, archive)
            assert "waiting" in second.stderr.readline()
            Waits.go.set()
            printed = [process.communicate(timeout=60)[0] for process in (first, second)]
        assert printed == [data.load(archive).sha256 + "\n"] * 2
        assert len(Waits.requests) == 1
        assert files(data.cache_folder()) == [archive.name]


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.mark.usefixtures("small")
class TestSaving:
    """What goes wrong with the disk is not the network's fault, and made-up images do not stand in for it."""

    @pytest.fixture
    def full(self, served):
        """A disk without room for the archive."""
        data.cache_folder().mkdir(parents=True)
        (data.cache_folder() / f".{served.name}.{os.getpid()}.part").symlink_to("/dev/full")

    def fails(self, reason, remedy):
        with pytest.raises(DataError) as caught:
            data.load(None, allow_generated=True)
        assert not isinstance(caught.value, DownloadError)
        message = str(caught.value)
        assert message.startswith(f"{data.cache_folder()}: cannot write there ({reason})")
        assert remedy in message
        assert "XDG_CACHE_HOME" in message
        assert "--data DIR" in message

    @FULL
    def test_disk_full(self, full):
        self.fails("No space left on device", "Free 170 MB there")
        assert files(data.cache_folder()) == []

    def test_disk_that_is_full_when_it_is_flushed(self, monkeypatch, served):
        def flush(file):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(os, "fsync", flush)
        self.fails("Disk quota exceeded", "Free 170 MB there")
        assert files(data.cache_folder()) == []

    def test_file_in_the_way(self, monkeypatch, served):
        (data.cache_folder().parent.parent).write_text("mine")
        self.fails("Not a directory", "a folder that can be written")
        assert data.cache_folder().parent.parent.read_text() == "mine"

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, served):
        data.cache_folder().mkdir(parents=True)
        data.cache_folder().chmod(0o500)
        self.fails("Permission denied", "a folder that can be written")
        data.cache_folder().chmod(0o700)
        assert files(data.cache_folder()) == []

    def test_disk_is_looked_at_before_the_network(self, nowhere):
        data.cache_folder().parent.parent.write_text("mine")
        self.fails("Not a directory", "a folder that can be written")

    @FULL
    def test_command_ends_as_for_other_mistakes(self, nowhere, full, capsys):
        short = ["--epochs", "1", "--steps", "1"]
        assert cli.main(["--quick", *short, "--device", "cpu", "--out", str(nowhere / "out")]) == 2
        printed = capsys.readouterr()
        assert f"error: {data.cache_folder()}: cannot write there (No space left on device)" in printed.err
        assert "GENERATED" not in printed.out
        assert not (nowhere / "out").exists()


def test_generated_images_only_when_allowed(nowhere):
    cifar = data.load(None, allow_generated=True)
    assert cifar.generated
    assert len(cifar.train.labels) == 16_000
    assert set(cifar.test.labels.tolist()) == set(range(10))
    assert cifar.sha256 == data.load(None, allow_generated=True).sha256
