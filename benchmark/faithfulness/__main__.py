"""The command line: `python -m benchmark.faithfulness`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from benchmark.cli.app import run_app, split_names
from benchmark.cli.options import DEFAULT_RUNS, DataRoot, DeviceName, Pages, Runs, Threads, check_exists
from benchmark.core.devices import make_deterministic, resolve_device
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.core.text import counted
from benchmark.faithfulness.collecting import ComparedRun, Comparer, FaithfulnessReport, group_runs
from benchmark.faithfulness.render import print_faithfulness, write_faithfulness
from benchmark.io.files import check_writable
from benchmark.results.provenance import describe_environment
from benchmark.results.store import Store
from figures.render import check_drawing


def main(
    runs: Runs = DEFAULT_RUNS,
    reports: Pages = Path("reports"),
    scale: Annotated[str, typer.Option(help="Only runs of this scale: demo, quick or paper. [all]")] = "",
    pairs: Annotated[
        str | None, typer.Option(help="Only these networks: a list such as 'WRN-40-2>WRN-16-2'. [all]")
    ] = None,
    dataset: Annotated[str, typer.Option(help="The runs' dataset, where it is a TOML file of your own.")] = "",
    data_root: DataRoot = None,
    device: DeviceName = "auto",
    threads: Threads = 1,
    keep_logits: Annotated[
        bool,
        typer.Option(
            "--keep-logits", help="Keep each run's test logits as float16 in its folder (CIFAR-100: 2 MB a run)."
        ),
    ] = False,
) -> int:
    """Compare what students and their teachers predict of every test image, for all runs that kept their weights."""
    console = Console()
    check_exists(runs)
    check_writable(reports, "--reports")
    check_drawing()
    place = resolve_device(device)
    make_deterministic(place, threads)
    finished, unreadable = list_students(runs, scale)
    groups = group_runs(finished, split_names(pairs, "--pairs"))
    if not groups:
        chosen = " of this --scale and these --pairs" if scale or pairs else ""
        raise UserError(
            f"{runs} has no finished student with a teacher{chosen}; train one, or name another folder with --runs"
        )
    comparer = Comparer(runs, data_root, dataset, place, keep_logits)
    compared: list[ComparedRun] = []
    with console.status("") as status:
        for group in groups:
            compared += comparer.compare(group, lambda run: status.update(f"predicting: {run.id}"))
    report = FaithfulnessReport(
        compared=tuple(compared),
        left_out=(*unreadable, *comparer.left_out),
        generated_from=describe_environment(),
    )
    if not compared:
        raise UserError(f"no student can be compared with its teacher: {report.left_out[0]}")
    written = write_faithfulness(report, reports)
    print_faithfulness(report, console)
    console.print(Text(f"Written: {counted(len(written), 'file')} {reports / 'faithfulness'}.*"), soft_wrap=True)
    return 0


def list_students(root: Path, scale: str) -> tuple[list[Run], list[str]]:
    """List the finished runs of a store that trained a student, and a line on each record that cannot be read."""
    records, unreadable = Store(root).read_all()
    runs = [Run.model_validate(record["run"]) for record in records if "student" in record.get("weights", ())]
    return [run for run in runs if scale in ("", run.scale.name)], unreadable


if __name__ == "__main__":
    run_app(main, "python -m benchmark.faithfulness")
