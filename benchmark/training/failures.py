"""Records of runs that raised errors: a traceback in the folder of the run, and a line for people."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import write_text
from benchmark.plugins.registry import method_class
from benchmark.plugins.source import describe_error, describe_failure, locate
from benchmark.results.store import Store


class RunsFailed(Exception):
    """Some runs raised errors and have no record; the message has a line on each."""


def log_failure(store: Store, runs: Sequence[Run], error: Exception) -> str:
    """Save the traceback of an error that ended some runs in the folder of the first; returns a line on it."""
    save_traceback(store, runs[0], error)
    if len(runs) == 1:
        return f"run {runs[0].id} failed: {describe_failure(method_class(runs[0].method), error)}"
    where = locate(error)
    return f"run {runs[0].id} and {len(runs) - 1} more failed: {describe_error(error)}{f' ({where})' if where else ''}"


def save_traceback(store: Store, run: Run, error: Exception) -> None:
    """Write the traceback of an error into the folder of a run."""
    # The error may be that nothing can be written there.
    with contextlib.suppress(UserError):
        write_text(store.traceback(run), "".join(traceback.format_exception(error)))
