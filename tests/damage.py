"""Files of a run in a store, and how they come to harm."""

from __future__ import annotations

from pathlib import Path

from benchmark.core.spec import Run
from benchmark.results.store import Store
from tests.engine import run_of

RUN = run_of("Baseline")


def record_path(store: Store, run: Run = RUN) -> Path:
    return store.folder(run) / "record.json"


def weights_path(store: Store, run: Run = RUN) -> Path:
    return store.folder(run) / "student.safetensors"


def flip(path: Path, place: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def damaged_files(store: Store, run: Run = RUN) -> list[str]:
    return sorted(path.name for path in store.folder(run).glob("damaged-*"))
