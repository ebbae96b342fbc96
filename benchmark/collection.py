"""All records of a store, found by what they are records of: for reports, which are made without any dataset."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmark.command_line import CHANGEABLE
from benchmark.grid import grid_of, results_of
from benchmark.plan import Request
from benchmark.protocols import PROTOCOLS, base_scale, protocol_named, usual_seeds
from benchmark.registry import method_names
from benchmark.remarks import remarks_of
from benchmark.results import Record, Store
from benchmark.spec import Protocol, ReleasedTeacher, Run, Scale
from tables.result import TableResult
from tables.specification import Table

OF_ONE_SEED = ("seed", "precision", "teacher_precision", "fraction_seed")
"""What differs between the seeds of one cell, or may."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a table have in common: the data, the recipe and how much of it is spent."""

    dataset: str
    fingerprint: str
    protocol: Protocol
    scale: Scale

    def request(self, **changes: Any) -> Request:
        """How cells become runs in this setting; of a precision that `Collection.like` does not look at."""
        place = (self.dataset, self.fingerprint, self.protocol, self.scale, torch.device("cpu"))
        return Request(*place, precision="fp32", **changes)


class Collection:
    """The records of a store by what they are, whatever their seed and precision."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.runs = [Run.model_validate(record["run"]) for record in self.records]
        self._by_digest = {run.digest: record for run, record in zip(self.runs, self.records, strict=True)}
        self._by_kin: dict[str, list[tuple[Run, Record]]] = defaultdict(list)
        self._released: dict[str, dict[str, ReleasedTeacher]] = defaultdict(dict)
        for run, record in zip(self.runs, self.records, strict=True):
            self._by_kin[_kin(run)].append((run, record))
            if isinstance(run.teacher, ReleasedTeacher):
                self._released[run.teacher.network][run.teacher.sha256] = run.teacher

    @classmethod
    def of(cls, store: Store) -> Collection:
        """The records of a store as they stand now.

        Raises:
            UserError: a record is damaged.
        """
        return cls(store.records())

    def find(self, run: Run) -> Record | None:
        """The record of exactly this run."""
        return self._by_digest.get(run.digest)

    def like(self, run: Run) -> dict[Run, Record]:
        """The records of runs that differ from this one in seed or precision only, by seed, one precision for all.

        Where there are runs of several precisions, or from the run's own teacher and from one that came from a file,
        those are taken of which most are finished.
        """
        groups: dict[str, dict[Run, Record]] = defaultdict(dict)
        for name in [_kin(run), *self._taught_from_files(run)]:
            for other, record in sorted(self._by_kin.get(name, []), key=lambda pair: pair[0].seed):
                groups[f"{other.precision} {other.teacher_precision} {name}"][other] = record

        def finished(group: Mapping[Run, Record]) -> int:
            return sum(record["status"] == "finished" for record in group.values())

        return max(groups.values(), key=finished, default={})

    def settings(self) -> list[Setting]:
        """The settings that there are runs of, apart from those that were tested on held-out training images."""
        found: dict[tuple[str, ...], Setting] = {}
        for run in self.runs:
            if run.method not in method_names() or run.validation or run.protocol.name not in PROTOCOLS:
                continue
            changes = {name: getattr(run.protocol, name) for name in CHANGEABLE}
            setting = Setting(
                run.dataset, run.fingerprint, protocol_named(run.protocol.name).changed(**changes), run.scale
            )
            key = (setting.dataset, setting.fingerprint, setting.protocol.content, setting.scale.content)
            found.setdefault(key, setting)
        return list(found.values())

    def table(self, table: Table, setting: Setting) -> TableResult:
        """A table, as far as there are runs for it in a setting."""
        scale = setting.scale.name
        seeds = range(usual_seeds(scale))
        request = setting.request()
        grid = grid_of(table.at(base_scale(scale)), request, seeds)
        remarks = remarks_of(request, table.protocol_for(base_scale(scale)))
        return results_of(grid, request, self.records_like, self.find, remarks=remarks)

    def records_like(self, runs: Sequence[Run]) -> dict[Run, Record | None]:
        """The records of any seed that are there for a cell, and None for its seeds that are not."""
        found: dict[Run, Record | None] = dict(self.like(runs[0]))
        seeds = {run.seed for run in found}
        missing = max(0, len(runs) - len(found))
        return found | dict.fromkeys([run for run in runs if run.seed not in seeds][:missing])

    def _taught_from_files(self, run: Run) -> list[str]:
        """What the run would be from each teacher of the same network that came from a file."""
        if not isinstance(run.teacher, Run):
            return []
        content, taught = _content(run), _content(run.teacher, outer=False)
        return [
            json.dumps(_replaced(content, taught, _content(other)), sort_keys=True)
            for other in self._released[run.teacher.student].values()
        ]


def _kin(run: Run) -> str:
    """What a run is, whatever its seed and precision: equal for the seeds of one cell."""
    return json.dumps(_content(run), sort_keys=True)


def _content(part: Run | ReleasedTeacher, outer: bool = True) -> dict[str, Any]:
    """The fields that tell a cell from others: the seed of a teacher does, that of a run's first stage does not."""
    content = part.model_dump(mode="json")
    if not isinstance(part, Run):
        return content
    for name in OF_ONE_SEED:
        if outer or name != "seed":
            del content[name]
    for name in ("teacher", "head", "start"):
        inner = getattr(part, name)
        if inner is not None:
            content[name] = _content(inner, outer=name == "start")
    return content


def _replaced(content: Any, old: Any, new: Any) -> Any:
    if content == old:
        return new
    if isinstance(content, dict):
        return {key: _replaced(value, old, new) for key, value in content.items()}
    return content
