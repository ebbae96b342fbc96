"""A dataset that is fetched is there whole or not at all, and a failure is one line. The server is on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from benchmark.data import Dataset, download, load_dataset, tiny_imagenet
from tests.test_data_tiny_imagenet import write_dataset

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Gives every request the same answer, and counts them."""

    def __init__(self) -> None:
        self.requests = 0
        self.answer: Answer = lambda request: request.send_error(404)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/tiny-imagenet-200.zip"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests += 1
        self.server.answer(self)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def sends(content: bytes, promised: int | None = None) -> Answer:
    """An answer with this content; `promised`: the length that its header says, if not the true one."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content) if promised is None else promised))
        request.end_headers()
        request.wfile.write(content)

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(tiny_imagenet, "URL", server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small Tiny-ImageNet, not to be changed."""
    root = tmp_path_factory.mktemp("original")
    write_dataset(root)
    return root


@pytest.fixture(scope="module")
def archive(dataset: Path) -> bytes:
    """The dataset's folder as a zip archive, stored without compression."""
    return zipped({str(path.relative_to(dataset)): path.read_bytes() for path in dataset.rglob("*") if path.is_file()})


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _pin(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, archive)


def pin(monkeypatch: pytest.MonkeyPatch, archive: bytes) -> None:
    """Take this archive for the true one."""
    monkeypatch.setattr(tiny_imagenet, "HASH", f"md5:{hashlib.md5(archive).hexdigest()}")


def load(root: Path) -> Dataset:
    return load_dataset("tiny-imagenet", root)


def test_what_is_fetched_is_the_dataset_and_is_fetched_once(
    server: Server, dataset: Path, archive: bytes, tmp_path: Path
) -> None:
    server.answer = sends(archive)
    fetched = load(tmp_path / "data")
    assert fetched.fingerprint == load_dataset("tiny-imagenet", dataset, tmp_path / "cache", download=False).fingerprint
    assert load(tmp_path / "data").fingerprint == fetched.fingerprint
    assert server.requests == 1
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert left - {".tiny-imagenet-200.lock"} == {"tiny-imagenet-200", ".kd-cache"}


def test_one_fetches_while_others_wait(server: Server, archive: bytes, tmp_path: Path) -> None:
    together, found = threading.Barrier(3), []
    server.answer = sends(archive)

    def read() -> None:
        together.wait()
        found.append(load(tmp_path / "data").fingerprint)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert server.requests == 1


def test_nothing_is_fetched_where_downloading_is_switched_off(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="downloading is switched off"):
        load_dataset("tiny-imagenet", tmp_path, download=False)
    assert server.requests == 0


def damaged(archive: bytes) -> bytes:
    """The archive with one byte of a file's content changed."""
    place = archive.index(b"JFIF") + 300
    return archive[:place] + bytes([archive[place] ^ 1]) + archive[place + 1 :]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda archive: lambda request: request.send_error(404), r"404 Client Error: Not Found"),
        (lambda archive: sends(archive[:5000], len(archive)), r"IncompleteRead\(5000 bytes read, \d+ more expected\)"),
        (lambda archive: sends(b"<html>log in first</html>"), r"the checksum of what came from http.* is wrong"),
        (lambda archive: sends(archive[: len(archive) // 2]), r"the checksum of what came from http.* is wrong"),
        (lambda archive: sends(damaged(archive)), r"the checksum of what came from http.* is wrong"),
        (lambda archive: sends(zipped({"tiny-imagenet-200/wnids.txt": b""})), r"the checksum of what came"),
        (lambda archive: lambda request: request.wfile.write(b"\0\n"), r"BadStatusLine"),
        (lambda archive: lambda request: None, r"Remote end closed connection without response"),
    ],
    ids=["missing", "short", "page", "half", "damaged", "another", "no-http", "closed"],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_download_is_one_line_and_leaves_nothing(
    server: Server,
    archive: bytes,
    tmp_path: Path,
    spoil: Callable[[bytes], Answer],
    reason: str,
    exists: bool,
) -> None:
    server.answer = spoil(archive)
    root = tmp_path / "data"
    if exists:
        root.mkdir()
    with pytest.raises(
        UserError, match=rf"downloading it failed \({reason}.*\); get {server.url} and unpack it there"
    ) as raised:
        load(root)
    assert "\n" not in str(raised.value)
    assert root.exists() == exists
    assert not exists or not list(root.iterdir())
    server.answer = sends(archive)
    assert load(root).num_classes == 200


def test_a_download_without_end_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 10_000)

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(b"\0" * 65_536)

    server.answer = endless
    with pytest.raises(UserError, match=r"downloading it failed \(more than 9\.8 KiB came\)"):
        load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_archive_of_the_right_hash_without_the_dataset_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = zipped({"other/wnids.txt": b""})
    pin(monkeypatch, other)
    server.answer = sends(other)
    with pytest.raises(UserError, match=r"\(what came from http.* has no tiny-imagenet-200/wnids"):
        load(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_intact_archive_in_the_data_folder_is_unpacked_and_nothing_is_fetched(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(archive)
    assert load(tmp_path).num_classes == 200
    assert server.requests == 0


def test_a_server_that_falls_silent_is_given_up(
    server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "NETWORK_TIMEOUT", 0.2)
    given_up = threading.Event()

    def stall(request: BaseHTTPRequestHandler) -> None:
        sends(archive[:1000], len(archive))(request)
        given_up.wait(20)

    server.answer = stall
    try:
        with pytest.raises(UserError, match=r"downloading it failed \(timed out\)"):
            load(tmp_path)
    finally:
        given_up.set()
    assert not list(tmp_path.iterdir())


def test_nobody_at_the_address_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as nobody:
        url = nobody.url
    monkeypatch.setattr(tiny_imagenet, "URL", url)
    with pytest.raises(UserError, match=r"downloading it failed \(Connection refused\)"):
        load(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_interrupted_download_leaves_no_part_and_the_next_one_clears_what_a_killed_one_left(
    server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = sends(archive)
    killed = tmp_path / ".tiny-imagenet-200.killed.tmp"
    killed.mkdir()
    (killed / "archive.zip").write_bytes(b"half")

    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny-imagenet-200.lock"]
    assert load(tmp_path).num_classes == 200


def test_a_data_folder_that_cannot_be_made_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"downloading it failed \(Not a directory\)"):
        load(tmp_path / "file" / "data")
    assert server.requests == 0
