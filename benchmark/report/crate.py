"""Describe a folder of runs so that it can be cited and deposited: `python -m benchmark.report.crate --runs results`.

Writes `ro-crate-metadata.json` (RO-Crate, https://w3id.org/ro/crate) into the folder. A repository of data reads it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmark.cli.app import run_app
from benchmark.cli.options import DEFAULT_RUNS, Runs, check_exists
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import check_writable, write_text
from benchmark.report.citing import describe_maker
from benchmark.report.runs import describe_run
from benchmark.results.record import Record
from benchmark.results.store import Store

PROGRAM = "python -m benchmark.report.crate"
FILE = "ro-crate-metadata.json"
NAME = "Training runs of kd-benchmark"
DESCRIPTION = (
    "Records of knowledge distillation: what each run trained, its accuracy after every epoch, its cost, and the "
    "version and machine that made it. A record is one JSON file with a checksum of its content."
)


def main(
    runs: Runs = DEFAULT_RUNS,
    name: Annotated[str, typer.Option(help="What the collection is called.")] = NAME,
    licence: Annotated[str, typer.Option("--license", help="The address of the licence that you give it.")] = "",
) -> int:
    """Write ro-crate-metadata.json, a description of the records for archives, into the folder of runs."""
    check_exists(runs)
    check_writable(runs, "--runs")
    content = describe_folder(runs, name, licence)
    write_text(runs / FILE, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    Console().print(f"written: {runs / FILE}", highlight=False, markup=False, soft_wrap=True)
    return 0


def describe_folder(root: Path, name: str = NAME, licence: str = "") -> dict[str, Any]:
    """Describe the records of a folder of runs as RO-Crate metadata, the same for the same records.

    licence: its address, none where it is empty.

    Raises:
        UserError: rocrate is not installed, or there is no record that can be read.
    """
    try:
        from rocrate.model import ContextEntity
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        raise UserError(
            f"{FILE} is written with the package rocrate, which is not installed; pip install 'kd-benchmark[deposit]'"
        ) from error
    store = Store(root)
    records, _ = store.read_all()
    if not records:
        raise UserError(f"{root} has no record that can be read; give a folder with runs")
    crate = ROCrate()
    crate.name, crate.description = name, DESCRIPTION
    crate.datePublished = max(str(record["provenance"].get("written", "")) for record in records)[:10]
    if licence:
        crate.license = licence
    made = sorted({describe_maker(record) for record in records})
    for maker in made:
        crate.add(
            ContextEntity(
                crate,
                f"#{maker}",
                {"@type": "SoftwareApplication", "name": "kd-benchmark", "softwareVersion": maker},
            )
        )
    for record in sorted(records, key=lambda record: str(record["id"])):
        run = Run.model_validate(record["run"])
        path = store.folder(run) / "record.json"
        properties = _describe_record(run, record, path.read_bytes())
        crate.add_file(path, str(path.relative_to(root)), properties=properties)
    return dict(crate.metadata.generate())


def _describe_record(run: Run, record: Record, content: bytes) -> dict[str, Any]:
    top = record.get("final", {}).get("top1")
    outcome = f"top-1 {top:.2f} % after the last epoch" if top is not None else str(record["status"])
    teacher = f" taught by {run.teacher_network}" if run.teacher_network else ""
    return {
        "name": run.id,
        "description": f"{describe_run(run)}, {run.student}{teacher}, seed {run.seed} on {run.dataset}: {outcome}",
        "encodingFormat": "application/json",
        "contentSize": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "dateCreated": str(record["provenance"].get("written", "")),
        "instrument": {"@id": f"#{describe_maker(record)}"},
    }


if __name__ == "__main__":
    run_app(main, PROGRAM)
