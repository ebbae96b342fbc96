"""torchvision's released weights: found, fetched, checked, or done without."""

from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.backbones import build_network, pretrained
from benchmark.backbones.pretrained import torchvision_teacher
from benchmark.backbones.released import apply_to, load_released
from benchmark.core.errors import UserError
from benchmark.data.torchvision_operators import import_torchvision

NETWORK = "ImageNet-ResNet18"


class Lines(list[str]):
    """What is said to the user."""

    def __call__(self, line: str) -> None:
        assert "\n" not in line
        self.append(line)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision releases them, of a network that nobody has trained."""
    folder = tmp_path_factory.mktemp("server")
    models: Any = import_torchvision("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(models.resnet18(weights=None).state_dict(), folder / "new")
    digits = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    return (folder / "new").rename(folder / f"resnet18-{digits}.pth")


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(released: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file's address on a server on this machine, in the place of the real one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=released.parent))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/{released.name}"
    monkeypatch.setitem(pretrained.URLS, NETWORK, address)
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the user that is nobody's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "home" / "kd-benchmark" / "weights"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_addresses_are_torchvisions_own() -> None:
    models: Any = import_torchvision("models")
    for network, weights in (
        ("ImageNet-ResNet18", models.ResNet18_Weights.IMAGENET1K_V1),
        ("ImageNet-ResNet34", models.ResNet34_Weights.IMAGENET1K_V1),
    ):
        assert pretrained.URLS[network] == weights.url
    assert round(models.ResNet34_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"], 2) == 73.31


def test_weights_are_fetched_once_and_fit_our_network(url: str, released: Path, tmp_path: Path) -> None:
    said = Lines()
    path = torchvision_teacher(NETWORK, tmp_path / "data", said)
    assert path == tmp_path / "data" / "weights" / released.name
    assert said == [f"fetching {url} to {tmp_path / 'data' / 'weights'}"]
    assert files(tmp_path / "data") == [released.name]
    assert torchvision_teacher(NETWORK, tmp_path / "data", said, download=False) == path
    assert len(said) == 1
    network = build_network(NETWORK, 1000).eval()
    apply_to(network, load_released(path), NETWORK)
    models: Any = import_torchvision("models")
    theirs = models.resnet18(weights=None).eval()
    theirs.load_state_dict(torch.load(released, weights_only=True))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(network(images).logits, theirs(images), rtol=1e-5, atol=1e-5)


def test_a_network_without_released_weights_has_none(tmp_path: Path) -> None:
    said = Lines()
    assert torchvision_teacher("WRN-40-2", tmp_path, said) is None
    assert not said


def test_without_a_network_one_line_says_that_the_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setitem(pretrained.URLS, NETWORK, f"http://127.0.0.1:{port}/resnet18-0123abcd.pth")
    said = Lines()
    assert torchvision_teacher(NETWORK, tmp_path / "data", said) is None
    assert said[1:] == [
        f"{NETWORK}: torchvision's weights cannot be fetched (Connection refused); the teacher is trained instead"
    ]
    assert files(tmp_path) == []


def test_nothing_is_fetched_where_that_is_switched_off(url: str, tmp_path: Path) -> None:
    said = Lines()
    assert torchvision_teacher(NETWORK, tmp_path / "data", said, download=False) is None
    assert len(said) == 1
    assert "would be trained" in said[0]
    assert files(tmp_path) == []


def test_another_file_than_the_name_says_is_not_taken(
    url: str, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = released.with_name("resnet18-00000000.pth")
    other.write_bytes(b"something else")
    monkeypatch.setitem(pretrained.URLS, NETWORK, url.replace(released.name, other.name))
    said = Lines()
    assert torchvision_teacher(NETWORK, tmp_path / "data", said) is None
    assert "invalid hash value" in said[-1]
    assert files(tmp_path) == []
    monkeypatch.setitem(pretrained.URLS, NETWORK, url.replace(released.name, "missing-00000000.pth"))
    assert torchvision_teacher(NETWORK, tmp_path / "data", said) is None
    assert "File not found" in said[-1] or "Not Found" in said[-1]


def test_a_damaged_file_is_refused(url: str, released: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights" / released.name
    path.parent.mkdir()
    path.write_bytes(released.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"^{path} is damaged: .* delete it to have it fetched$"):
        torchvision_teacher(NETWORK, tmp_path, Lines())


def test_where_the_data_folder_cannot_be_written_the_users_cache_is(
    url: str, released: Path, tmp_path: Path, home: Path
) -> None:
    # A file in the place of the folder keeps also a superuser from writing there.
    (tmp_path / "weights").write_text("")
    assert torchvision_teacher(NETWORK, tmp_path, Lines()) == home / released.name
    assert torchvision_teacher(NETWORK, tmp_path, Lines(), download=False) == home / released.name
    (home / released.name).unlink()
    home.rmdir()
    home.write_text("")
    said = Lines()
    assert torchvision_teacher(NETWORK, tmp_path, said) is None
    assert f"{tmp_path / 'weights'}: " in said[-1]
    assert f"{home}: " in said[-1]
