"""The commit that records and reports name: whether it is all the code there was; and what is left out of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.results.provenance import anonymise, commit_of
from benchmark.results.store import Store
from benchmark.training.job import run_until_done
from tests import engine


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


@pytest.mark.parametrize(
    ("command", "published"),
    [
        ("python -m benchmark.run --table II", "python -m benchmark.run --table II"),
        ("--data-root data --runs results/runs", "--data-root data --runs results/runs"),
        ("--pairs 'A>B' --set KD.alpha=0.3", "--pairs 'A>B' --set KD.alpha=0.3"),
        ("--data-root /home/me/data --seeds 3", "--data-root PATH --seeds 3"),
        ("--data-root='/home/my name/data' --seeds 3", "--data-root=PATH --seeds 3"),
        ("--teacher-checkpoint ResNet56=~me/a.pt", "--teacher-checkpoint ResNet56=PATH"),
        ("--table I,/home/me/own.toml,II", "--table I,PATH"),
        ("--runs ../me/runs", "--runs PATH"),
        ("--runs runs/../../me", "--runs PATH"),
        (r"--runs 'C:\Users\me'", "--runs C:PATH"),
    ],
)
def test_published_commands_lead_to_no_folder_of_the_machine(command: str, published: str) -> None:
    assert anonymise({"command": command}) == {"command": published}


def test_published_provenance_keeps_all_but_hosts_and_paths() -> None:
    made = {"torch": "2.13.0", "threads": 1, "cuda": None, "cohort": ["a_b-0"], "written": "2026-01-01T12:00:00+00:00"}
    hosts = {"host": "node7", "pieces": [{"step": 0, "host": "node8", "note": "/home/me"}]}
    assert anonymise(made | hosts) == made | {"pieces": [{"step": 0, "note": "PATH"}]}
    # Who brings a record in from elsewhere may have written anything there.
    for nonsense in ("'", None, 3, ["/home/me"]):
        assert anonymise({"command": nonsense, "host": "node7"}) == {}


def test_a_run_is_the_same_with_and_without_its_host(tmp_path: Path) -> None:
    run = engine.run_of("Baseline", protocol=engine.SHORT.replace(schedule={"epochs": 1}))
    records = []
    for without_host in (False, True):
        place = engine.settings(tmp_path / str(without_host), without_host=without_host, command="x --runs /home/me")
        assert run_until_done([run], place)
        records.append(Store(place.runs).record(run) or {})
    assert engine.comparable_part(records[0]) == engine.comparable_part(records[1])
    assert "host" in records[0]["provenance"]
    assert "host" not in str(records[1]["provenance"])
    assert "/home" not in str(records[1]["provenance"])
