"""Checks before anything is trained: corrupt records, stale code, methods that cannot be built."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import typer

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.core.text import counted
from benchmark.data.dataset import Dataset
from benchmark.planning.request import collect_dependencies
from benchmark.plugins.registry import method_class
from benchmark.plugins.source import check_weights, fingerprint_code, locate_line, user_errors
from benchmark.results.store import Store
from benchmark.training.learner import build_method

SAMPLE = 5000
"""Training images, about, for which a method is built to check it; with all of them, some methods take gigabytes."""

MANY_RUNS = 10_000
"""Runs of tables and figures above which a command asks before it plans them; the whole paper has 500 of them."""
MOST_RUNS = 500_000
"""More are never planned; so many take a gigabyte of memory and a minute."""
FEWER = "choose fewer seeds, methods, columns or values"


def confirm_size(count: int, confirmed: bool) -> None:
    """Ask on a terminal whether the user means so many runs, unless `--yes` has confirmed it.

    Raises:
        UserError: the user does not mean them, nobody can be asked, or there are more than can be planned.
    """
    if count > MOST_RUNS:
        raise UserError(f"{count:,} runs are too many for one command; allowed: {MOST_RUNS:,}; {FEWER}")
    if count <= MANY_RUNS or confirmed:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{count:,} runs are more than {MANY_RUNS:,}; pass --yes to plan them, or {FEWER}")
    if not typer.confirm(f"{count:,} runs are to be planned. Go on?"):
        raise UserError(f"nothing was planned; {FEWER}")


def check_records(store: Store, runs: Sequence[Run], heal: bool = True) -> list[str]:
    """Quarantine corrupt records and list warnings about them and about methods whose code changed since.

    heal: False leaves corrupt records where they are.

    Raises:
        UserError: see `Store.quarantine_damaged`.
    """
    lines, codes = store.quarantine_damaged(runs) if heal else ([], store.code_hashes(runs))
    return lines + stale_code_warnings(codes)


def stale_code_warnings(codes: Mapping[Run, str | None]) -> list[str]:
    """Warn about methods whose code changed after runs were trained while the version stayed; empty if there are none.

    codes: the code fingerprint in each run's record (`benchmark.plugins.source.fingerprint_code`), None if it has none.
        If the code changed during a run, the last fingerprint counts.
    """
    current = {name: fingerprint_code(method_class(name)) for name in {run.method for run in codes}}
    last = {run: code.split("+")[-1] for run, code in codes.items() if code is not None}
    counts = Counter(run.method for run, code in last.items() if code != current[run.method])
    if not counts:
        return []
    changed = ", ".join(
        f"{name} ({counted(count, 'run')}; {locate_line(inspect.getfile(method_class(name)))}, version "
        f"{method_class(name).version})"
        for name, count in sorted(counts.items())
    )
    return [
        f"warning: edited since these runs were trained, with the same version: {changed}. They are not trained again; "
        "if a method computes something else now, raise the version in its class"
    ]


def check_methods(runs: Iterable[Run], dataset: Dataset) -> None:
    """Build the method of every run and what it depends on, once for each kind, before anything is trained.

    Raises:
        UserError: a method refuses its options, the networks or the dataset, or what it is made of cannot be made.
    """
    kinds: dict[tuple[str | None, ...], Run] = {}
    # Students that are probed learnt on another dataset, with which they are checked.
    for run in (run for run in collect_dependencies(runs) if run.dataset == dataset.name):
        kinds[run.method, run.student, run.teacher_network, json.dumps(run.options, sort_keys=True)] = run
    for run in kinds.values():
        with user_errors(method_class(run.method), "be built"):
            _check_method(run, dataset)


def _check_method(run: Run, dataset: Dataset) -> None:
    """Build the method of a run for a sample of the images, or for all of them if that fails."""
    labels = dataset.train.labels
    step = max(1, len(labels) // SAMPLE)
    if step > 1:
        with contextlib.suppress(Exception):
            check_weights(build_method(run, dataset.num_classes, dataset.image_size, labels[::step], fill=False))
            return
    check_weights(build_method(run, dataset.num_classes, dataset.image_size, labels, fill=False))
