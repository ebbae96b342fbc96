"""Methods that were edited since their runs were trained, though their version says that they mean the same."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmark.method_files import code_of, place
from benchmark.registry import method_class
from benchmark.results import Store
from benchmark.spec import Run


def looked_over(store: Store, runs: Sequence[Run], heal: bool = True) -> list[str]:
    """Lines on damaged records of some runs, which are put aside (`Store.heal`), and on methods edited since.

    heal: False leaves what is damaged where it is.

    Raises:
        UserError: see `Store.heal`.
    """
    lines, codes = store.healed(runs) if heal else ([], store.codes(runs))
    return lines + edited(codes)


def edited(codes: Mapping[Run, str | None]) -> list[str]:
    """A line on the methods whose code is not what it was when some runs were trained; none where there are none.

    codes: what the records of runs say of their methods' code (`method_files.code_of`), None where they say nothing; of
    runs that were edited while they were interrupted the last of several counts.
    """
    today = {name: code_of(method_class(name)) for name in {run.method for run in codes}}
    last = {run: code.split("+")[-1] for run, code in codes.items() if code is not None}
    counts = Counter(run.method for run, code in last.items() if code != today[run.method])
    if not counts:
        return []
    found = ", ".join(
        f"{name} ({count} {'run' if count == 1 else 'runs'}; {place(inspect.getfile(method_class(name)))}, version "
        f"{method_class(name).version})"
        for name, count in sorted(counts.items())
    )
    return [
        f"warning: edited since these runs were trained, with the same version: {found}. They are not trained again; "
        "if a method computes something else now, raise the version in its class"
    ]
