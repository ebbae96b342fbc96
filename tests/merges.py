"""Two stores for the tests of merging: a colleague's and one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmark.backbones import build_network
from benchmark.core.rng import generator
from benchmark.core.spec import Run
from benchmark.merge import Kind, Merge, MergeFinding
from benchmark.results.record import Record, compute_checksum
from benchmark.results.store import Store
from benchmark.training.job import run_until_done
from tests import engine, report_records
from tests.commands import files_under

NETWORK = "ResNet8"


def run_of(method: str = "Baseline", seed: int = 0, **changes: Any) -> Run:
    return report_records.request("demo", "digits", **changes).run(method, NETWORK, "ResNet20", seed)


def weights_of(run: Run, seed: int = 0, classes: int = 10) -> dict[str, Tensor]:
    network = build_network(run.student, classes)
    network.initialise(lambda name: generator("test", name, seed))
    return dict(network.state_dict())


def write(root: Path, run: Run, weights: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A finished run whose record and weights are as training leaves them; returns its folder."""
    store = Store(root)
    store.begin(run)
    store.finish(run, report_records.record_of(run) | changes, {"student": weights or weights_of(run)})
    return store.folder(run)


def merged(source: Path, here: Path, dry_run: bool = False, **options: bool) -> dict[str, list[MergeFinding]]:
    """What a merge found, by its kind."""
    found: dict[str, list[MergeFinding]] = {}
    for finding in Merge(Store(here), dry_run, **options).merge(source):
        found.setdefault(finding.kind, []).append(finding)
    return found


def counts(found: dict[str, list[MergeFinding]]) -> dict[str, int]:
    return {kind: len(findings) for kind, findings in found.items()}


def why(source: Path, here: Path, kind: Kind = "refused") -> str:
    """Why the only run there was found to be of this kind; the dry run says the same and nothing was brought in."""
    before = files_under(here) if here.exists() else []
    (foreseen,) = Merge(Store(here), dry_run=True).merge(source)
    (finding,) = Merge(Store(here)).merge(source)
    assert (foreseen.kind, finding.kind) == (kind, kind), finding
    assert foreseen.why == finding.why
    assert (files_under(here) if here.exists() else []) == before
    return finding.why


def rewritten(folder: Path, change: Callable[[Record], Any], summed: bool = True) -> None:
    """Change a record as somebody who knows the format would: with a checksum that fits."""
    record = json.loads((folder / "record.json").read_text())
    changed = change(record)
    record = record if changed is None else changed
    if summed and isinstance(record, dict):
        record["sha256"] = compute_checksum(record)
    (folder / "record.json").write_text(json.dumps(record))


def nested(depth: int) -> str:
    """A list in a list in a list, so many, as JSON."""
    return "[" * depth + "]" * depth


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run]]:
    """A store of runs that were trained: a teacher, its head, the student of both."""
    place = engine.settings(tmp_path_factory.mktemp("trained") / "runs")
    request = engine.request(protocol=engine.SHORT.replace(schedule={"epochs": 1}))
    run = engine.shrunk(request.run("SSKD", NETWORK, NETWORK, 0))
    runs = [*run.dependencies(), run]
    engine.train_dependencies([run], place)
    assert run_until_done([run], place)
    return place.runs, runs
