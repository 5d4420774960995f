"""CIFAR-10 on disk: both layouts, folders and archives, and every kind of damage."""

import functools
import hashlib
import http.server
import io
import pickle
import struct
import threading

import numpy as np
import pytest
import torch

from examples.cifar10 import data
from examples.cifar10.runtime import DataError, DownloadError
from tests.oracles.cifar10 import FILES, RECORDS, batch, pack, write, write_binary


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
        write(data.PYTHON, tmp_path, functools.partial(as_python, dump=dump))
        self.check(data.load(tmp_path))

    @pytest.mark.parametrize("layout", data.LAYOUTS, ids=lambda layout: layout.archive)
    def test_archive_is_read_in_place(self, tmp_path, layout):
        write(layout, tmp_path / "made", np.ndarray.tobytes if layout is data.BINARY else as_python)
        archive = pack(layout, tmp_path / "made")
        place = tmp_path / "place"
        place.mkdir()
        archive = archive.rename(place / layout.archive)
        self.check(data.load(place))
        self.check(data.load(archive))
        assert list(place.iterdir()) == [archive]

    def test_archive_packed_with_a_dot(self, tmp_path):
        write_binary(tmp_path)
        self.check(data.load(pack(data.BINARY, tmp_path, "./")))

    def test_partial_folder_beside_a_whole_archive(self, tmp_path):
        folder = write_binary(tmp_path)
        archive = pack(data.BINARY, tmp_path)
        (folder / "data_batch_3.bin").unlink()
        cifar = data.load(tmp_path)
        self.check(cifar)
        assert cifar.source == str(archive)

    def test_usual_places(self, nowhere):
        write_binary(nowhere / "data")
        self.check(data.load(None))
        write_binary(data.cache_folder())
        assert data.load(None).source == str(data.cache_folder() / "cifar-10-batches-bin")


def unlabeled(file):
    records = batch(2)
    records[7, 0] = 10
    file.write_bytes(records.tobytes())


@pytest.mark.usefixtures("small")
class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda file: file.write_bytes(file.read_bytes()[:-1]), "122,919 bytes, unreadable"),
            (
                lambda file: file.write_bytes(file.read_bytes()[:3073]),
                r"labels \(1,\), .*a batch is labels \(40,\)",
            ),
            (unlabeled, r"record 7 has label 10; labels run from 0 to 9\. Replace it"),
            (lambda file: file.unlink(), r"data_batch_3\.bin missing, of data_batch_1\.bin"),
        ],
        ids=["truncated", "short", "label", "missing"],
    )
    def test_binary_layout(self, tmp_path, damage, message):
        damage(write_binary(tmp_path) / "data_batch_3.bin")
        with pytest.raises(DataError, match=message):
            data.load(tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match=r"no CIFAR-10 there.*cifar-10-batches-bin.*Correct --data"):
            data.load(tmp_path, allow_generated=True)

    def test_truncated_archive(self, tmp_path):
        write_binary(tmp_path)
        archive = pack(data.BINARY, tmp_path)
        archive.write_bytes(archive.read_bytes()[:50_000])
        with pytest.raises(DataError, match=r"binary\.tar\.gz: .*not a whole .tar.gz archive"):
            data.load(archive)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (as_python(batch(2))[:-500], "bytes, unreadable"),
            (pickle.dumps([1, 2]), "unreadable"),
            (pickle.dumps({"data": batch(2)[:, 1:]}), "unreadable .*labels"),
            (as_python(batch(2)[:-1]), r"labels \(39,\), pixels uint8 \(39, 3072\); .*uint8 \(40, 3072\)"),
            (pickle.dumps(print), "it asks for builtins.print, which no CIFAR-10 batch needs"),
            (as_python(batch(2).astype(np.int64) + 1), "pixels int64"),
        ],
    )
    def test_python_layout(self, tmp_path, content, message):
        (write(data.PYTHON, tmp_path, as_python) / "data_batch_3").write_bytes(content)
        with pytest.raises(DataError, match="data_batch_3: .*" + message):
            data.load(tmp_path)


def test_not_a_batch(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in FILES:
        (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(b"<html>")
    with pytest.raises(DataError, match="6 bytes, unreadable"):
        data.load(tmp_path)


def test_generated_images_only_when_allowed(nowhere):
    cifar = data.load(None, allow_generated=True)
    assert cifar.generated
    assert len(cifar.train.labels) == 16_000
    assert set(cifar.test.labels.tolist()) == set(range(10))
    assert cifar.sha256 == data.load(None, allow_generated=True).sha256


class TestDownload:
    @pytest.fixture
    def served(self, monkeypatch, nowhere, small):
        """An archive that the download finds; the server's handler can be changed."""
        write_binary(nowhere / "server")
        archive = pack(data.BINARY, nowhere / "server")

        class Handler(http.server.SimpleHTTPRequestHandler):
            log_message = lambda *_: None  # noqa: E731

        directory = functools.partial(Handler, directory=archive.parent)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), directory) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setattr(data, "URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
            monkeypatch.setattr(data, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
            yield Handler
            server.shutdown()

    def left(self):
        return [path.name for path in data.cache_folder().glob("*")]

    @pytest.mark.usefixtures("served")
    def test_fetched_once_with_a_progress_bar(self, monkeypatch, capsys):
        cifar = data.load(None)
        assert cifar.source == str(data.cache_folder() / "cifar-10-binary.tar.gz")
        assert "100%" in capsys.readouterr().err
        assert self.left() == ["cifar-10-binary.tar.gz"]
        monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/nothing")
        assert data.load(None).sha256 == cifar.sha256

    def test_half_an_archive(self, served, monkeypatch):
        """Announced whole: the connection broke; a failure of the network, which images may replace."""
        monkeypatch.setattr(served, "copyfile", lambda self, source, out: out.write(source.read(1000)))
        with pytest.raises(DownloadError, match=r"download failed .*with --data DIR"):
            data.load(None)
        assert not self.left()
        assert data.load(None, allow_generated=True).why_generated

    @pytest.mark.usefixtures("served")
    def test_wrong_checksum(self, monkeypatch):
        """Never replaced by generated images."""
        monkeypatch.setattr(data, "MD5", "0" * 32)
        with pytest.raises(DataError, match="not the official archive") as caught:
            data.load(None, allow_generated=True)
        assert not isinstance(caught.value, DownloadError)
        assert not self.left()

    @pytest.mark.usefixtures("served")
    def test_cache_that_cannot_be_written(self, monkeypatch, nowhere):
        (nowhere / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "file"))
        with pytest.raises(DataError, match=r"cannot write there .*XDG_CACHE_HOME"):
            data.load(None, allow_generated=True)

    def test_absent(self, served, monkeypatch):
        monkeypatch.setattr(served, "do_GET", lambda self: self.send_error(404))
        with pytest.raises(DownloadError, match="404"):
            data.load(None)
