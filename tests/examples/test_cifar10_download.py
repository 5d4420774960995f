"""The download: networks and disks that fail, processes that are killed, two at a time."""

import contextlib
import errno
import functools
import hashlib
import http.server
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from examples.cifar10 import cli, data, download, layouts
from examples.cifar10.errors import DataError, DownloadError
from tests.oracles.cifar10 import dead
from tests.oracles.cifar10_disk import RECORDS, pack, write_binary


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
    root = Path(__file__).parents[2]
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
