"""Records as rows of a DataFrame."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from benchmark.core.spec import Run

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
"""A record's columns: texts, numbers, booleans and None."""


def to_dataframe(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a record: the spec's main fields, final figures, best-on-test figures, cost and provenance.

    Lists and values with fields of their own (`stages`, `terms`, `cohort`, ...) are JSON texts.
    """
    import pandas as pd  # Late: it is slow to import, and training does not need it.

    return pd.DataFrame([to_row(record) for record in records])


def to_row(record: Mapping[str, Any]) -> Row:
    """The row of one record, see `to_dataframe`."""
    run = Run.model_validate(record["run"])
    own = {
        "id": run.id,
        "status": record["status"],
        "dataset": run.dataset,
        "fraction": run.fraction,
        "validation": run.validation,
        "method": run.method,
        "augmentation": run.augmentation,
        "student": run.student,
        "teacher": run.teacher_network,
        "teacher_outputs": run.teacher_outputs,
        "protocol": run.protocol.name,
        "scale": run.scale.name,
        "epochs": run.schedule.epochs,
        "precision": run.precision,
        "seed": run.seed,
        "options": run.options,
        "reason": record.get("reason"),
    }
    row = {
        **own,
        **record.get("final", {}),
        **{f"best_{key}": value for key, value in record.get("best_on_test", {}).items()},
        **{f"cost_{key}": value for key, value in record.get("cost", {}).items()},
        **{f"provenance_{key}": value for key, value in record["provenance"].items()},
        # Last, so that no figure takes the place of what the run is.
        **own,
    }
    return {
        key: json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
        for key, value in row.items()
    }
