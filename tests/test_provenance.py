"""The commit that records and reports name: whether it is all the code there was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.results.provenance import commit_of


def write(path: Path, text: str = "x = 1\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with all of its files in one commit."""
    folder = tmp_path / "checkout"
    write(folder / "methods" / "kd.py")
    write(folder / "README.md", "About.\n")
    write(folder / ".gitignore", "/runs/\n/methods/mine.py\n__pycache__/\n")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "All.")):
        subprocess.run(("git", *command), cwd=folder, check=True, capture_output=True)
    return folder


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    head = subprocess.run(("git", "rev-parse", "HEAD"), cwd=checkout, check=True, capture_output=True, text=True)
    assert commit_of(checkout) == head.stdout.strip()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write(folder / "methods" / "kd.py", "x = 2\n"),
        lambda folder: write(folder / "README.md", "Other.\n"),
        lambda folder: write(folder / "methods" / "logits.py"),
        lambda folder: write(folder / "methods" / "mine.py"),
        lambda folder: write(folder / "benchmark" / "backbones" / "net.py"),
        lambda folder: write(folder / "figures" / "new" / "__init__.py"),
    ],
    ids=["edited", "edited page", "new method", "ignored method", "new network", "new package"],
)
def test_other_code_than_the_commits_is_dirty(checkout: Path, change: Callable[[Path], None]) -> None:
    clean = commit_of(checkout)
    change(checkout)
    assert commit_of(checkout) == f"{clean}+dirty"


@pytest.mark.parametrize("file", ["note.txt", "mine.toml", "try.py", "methods/kd.txt", "runs/a.py", "tests/test_a.py"])
def test_files_that_are_no_module_of_the_suite_leave_it_clean(checkout: Path, file: str) -> None:
    clean = commit_of(checkout)
    write(checkout / file)
    write(checkout / "methods" / "__pycache__" / "kd.cpython-311.pyc")
    assert commit_of(checkout) == clean


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert commit_of(tmp_path) is None
