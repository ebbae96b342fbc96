"""Probe the student of a finished run on another dataset: `python -m benchmark.probe RUN --dataset stl10`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from benchmark.cli.app import format_command, run_app
from benchmark.cli.options import DataRoot, DeviceName, Runs, Threads, WithoutHost
from benchmark.core.errors import UserError
from benchmark.core.text import counted
from benchmark.data import load_dataset
from benchmark.execution.executor import ExecutionPlan
from benchmark.execution.progress import exit_code
from benchmark.executors import make_executor
from benchmark.export.finished import load_finished_run
from benchmark.io.files import check_writable
from benchmark.planning.checks import check_methods, check_records
from benchmark.planning.request import PROBE, RunFactory, RunGroup, describe_run
from benchmark.results.store import Store
from benchmark.training.settings import TrainSettings


def main(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run: its folder, its record.json, or the start of its id.")
    ],
    dataset: Annotated[str, typer.Option(help="The dataset to probe on, by name or TOML file.")] = "stl10",
    solver: Annotated[
        Literal["lbfgs", "sgd"], typer.Option(help="One fit to the features, or HSAKD's 100 epochs at the run's scale.")
    ] = "lbfgs",
    images: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Learn from about so many images of each class. [all]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31, help="Of its first weights and the choice of images. [the run's own]"),
    ] = None,
    data_root: DataRoot = None,
    device: DeviceName = "auto",
    threads: Threads = 1,
    runs: Runs = Path("runs"),
    without_host: WithoutHost = False,
) -> int:
    """Learn a new linear classifier on the frozen features of a run's student, and print its test accuracy."""
    console = Console()
    executor = make_executor("local", device, 1, processes=1, profile=None, waits=True)
    finished = load_finished_run(run, runs)
    if finished.run.method == PROBE and finished.run.start:
        raise UserError(f"{finished.run.id} is a probe itself; choose the run that it probes, {finished.run.start.id}")
    root = finished.folder.resolve().parent.parent
    check_writable(root, "--runs")
    shown = load_dataset(dataset, data_root)
    own = finished.run
    factory = RunFactory(
        dataset=own.dataset,
        fingerprint=own.fingerprint,
        protocol=own.protocol,
        scale=own.scale,
        device=executor.device,
        probed={dataset: (shown.name, shown.fingerprint)},
    )
    # As many images of each class would be left if all classes had their mean size.
    share = 1.0 if images is None else min(1.0, images * shown.num_classes / len(shown.train))
    probe = factory.probe(own, dataset, f"probe-{solver}", share, seed)
    check_methods([probe], shown)
    store = Store(root)
    for line in check_records(store, [own, probe]):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    group = RunGroup(f"{describe_run(probe)} on {shown.name}", dataset, shown, (probe,))
    plan = ExecutionPlan("probe", [group], executor.plan_jobs([group], store))
    command = format_command()
    settings = TrainSettings(
        root, "", data_root, str(executor.device), threads, command=command, without_host=without_host
    )
    summary = executor.train(plan, settings, store, console)
    record = store.record(probe)
    if record is not None and record["status"] == "finished":
        screen = Table("probe", "dataset", "images", "top-1 %", "best on test %", box=None, pad_edge=False)
        accuracies = [f"{record[part]['top1']:.2f}" for part in ("final", "best_on_test")]
        screen.add_row(describe_run(probe), shown.name, f"{record['cost']['images']:,}", *accuracies)
        console.print(screen)
        console.print(
            f"{counted(probe.schedule.epochs, 'epoch')}; record: {store.folder(probe)}", highlight=False, soft_wrap=True
        )
    return exit_code(summary, console)


if __name__ == "__main__":
    run_app(main, "python -m benchmark.probe")
