"""Methods that were edited since their runs were trained, though their version says that they mean the same."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmark.core.spec import Run
from benchmark.data.dataset import Dataset
from benchmark.planning.request import with_dependencies
from benchmark.plugins.registry import method_class
from benchmark.plugins.source import check_weights, fingerprint_code, locate_line, user_errors
from benchmark.results.store import Store
from benchmark.training.learner import build_method


def check_records(store: Store, runs: Sequence[Run], heal: bool = True) -> list[str]:
    """Lines on damaged records of some runs, which are put aside (`Store.heal`), and on methods edited since.

    heal: False leaves what is damaged where it is.

    Raises:
        UserError: see `Store.heal`.
    """
    lines, codes = store.quarantined(runs) if heal else ([], store.code_hashes(runs))
    return lines + edited(codes)


def edited(codes: Mapping[Run, str | None]) -> list[str]:
    """A line on the methods whose code is not what it was when some runs were trained; none where there are none.

    codes: what the records of runs say of their methods' code (`method_files.code_of`), None where they say nothing; of
    runs that were edited while they were interrupted the last of several counts.
    """
    today = {name: fingerprint_code(method_class(name)) for name in {run.method for run in codes}}
    last = {run: code.split("+")[-1] for run, code in codes.items() if code is not None}
    counts = Counter(run.method for run, code in last.items() if code != today[run.method])
    if not counts:
        return []
    found = ", ".join(
        f"{name} ({count} {'run' if count == 1 else 'runs'}; {locate_line(inspect.getfile(method_class(name)))}, version "
        f"{method_class(name).version})"
        for name, count in sorted(counts.items())
    )
    return [
        f"warning: edited since these runs were trained, with the same version: {found}. They are not trained again; "
        "if a method computes something else now, raise the version in its class"
    ]


def check_methods(runs: Iterable[Run], dataset: Dataset) -> None:
    """Build the method of every run and what it depends on, once for each kind, before anything is trained.

    Raises:
        UserError: a method refuses its options, the networks or the dataset, or what it is made of cannot be made.
    """
    kinds: dict[tuple[str | None, ...], Run] = {}
    texts: dict[int, str] = {}
    for run in with_dependencies(runs):
        # Runs that differ in their seed share their options.
        text = texts.get(id(run.options)) or json.dumps(run.options, sort_keys=True)
        texts[id(run.options)] = text
        kinds[run.method, run.student, run.teacher_network, text] = run
    for run in kinds.values():
        with user_errors(method_class(run.method), "be built"):
            method = build_method(run, dataset.num_classes, dataset.image_size, dataset.train.labels, fill=False)
            check_weights(method)
