"""Find records by what was run, for reports, which are made without any dataset."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from benchmark.analysis.cells import LookUp
from benchmark.core.protocols import CHANGEABLE, PROTOCOLS, get_protocol
from benchmark.core.spec import Precision, Protocol, ReleasedTeacher, Run, Scale, TeacherOutputs
from benchmark.planning.request import PROBE, SELF_TEACHER_SEED, PretrainedFile, RunFactory
from benchmark.plugins.registry import method_names
from benchmark.results.record import Record

OF_ONE_SEED = ("seed", "precision", "teacher_precision", "fraction_seed")
"""Fields that may differ between the seeds of one cell."""
TeacherSeeds = Literal["shared", "paired"]
LIVE: tuple[TeacherOutputs, ...] = ("live",)
"""How the teachers of a setting without any teacher are taken to have been used."""
Released = tuple[tuple[str, PretrainedFile], ...]


@dataclass(frozen=True)
class ExperimentSetting:
    """What all runs of a table have in common: dataset, protocol, scale and teachers.

    released: the teachers that came from files, by network; teacher_seeds: whether each seed has teachers of its own;
    processes: how many shared each batch; teacher_outputs: whether methods that can read their teacher's atlas.
    """

    dataset: str
    fingerprint: str
    protocol: Protocol
    scale: Scale
    released: Released = ()
    teacher_seeds: TeacherSeeds = "shared"
    processes: int = 1
    teacher_outputs: TeacherOutputs = "live"

    def make_factory(self, **changes: Any) -> RunFactory:
        """Make what plans runs in this setting; a query ignores their precision."""
        place = (self.dataset, self.fingerprint, self.protocol, self.scale, torch.device("cpu"))
        return RunFactory(
            *place,
            precision="fp32",
            teacher_seeds=self.teacher_seeds,
            processes=self.processes,
            teacher_outputs=self.teacher_outputs,
            released=dict(self.released),
            **changes,
        )


class RecordQuery:
    """The records of a store by what they are, whatever their seed and precision."""

    def __init__(
        self, records: Iterable[Record], teacher_metrics: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """teacher_metrics: what teachers from files reach on the test images, by the sha256 of their file."""
        self.records = list(records)
        self.teacher_metrics = teacher_metrics or {}
        self.runs = [Run.model_validate(record["run"]) for record in self.records]
        self._by_digest = {run.digest: record for run, record in zip(self.runs, self.records, strict=True)}
        self._by_kin: dict[str, list[tuple[Run, Record]]] = defaultdict(list)
        for run, record in zip(self.runs, self.records, strict=True):
            for teacher_seeds in get_args(TeacherSeeds):
                self._by_kin[_cell_key(run, teacher_seeds)].append((run, record))

    def find(self, run: Run) -> Record | None:
        """Find the record of exactly this run."""
        return self._by_digest.get(run.digest)

    def probed(self, sources: Iterable[str | None]) -> dict[str, tuple[str, str]]:
        """Find name and fingerprint of the datasets that students were probed on, as `RunFactory.probed` takes them.

        A dataset from a file is called like the file; one that no record is of has no fingerprint.
        """
        read = {run.dataset: run.fingerprint for run in self.runs if run.method == PROBE}
        return {source: (Path(source).stem, read.get(Path(source).stem, "")) for source in sources if source}

    def replicates(
        self, run: Run, teacher_seeds: TeacherSeeds = "shared", precision: Precision | None = None
    ) -> dict[Run, Record]:
        """Find the records of runs that differ from this one in seed or precision only; all have one precision.

        teacher_seeds: whether the teacher's seed is one for all or follows the run's; precision: of the student;
        without one that in which most are finished.
        """
        groups: dict[str, dict[Run, Record]] = defaultdict(dict)
        for other, record in sorted(self._by_kin.get(_cell_key(run, teacher_seeds), []), key=lambda pair: pair[0].seed):
            # A teacher of the same network is not another seed of its student.
            alike = (other.seed < SELF_TEACHER_SEED) == (run.seed < SELF_TEACHER_SEED)
            if alike and precision in (None, other.precision):
                groups[f"{other.precision} {other.teacher_precision}"][other] = record
        return max(groups.values(), key=_finished, default={})

    def settings(self) -> list[ExperimentSetting]:
        """List the settings that there are runs of, except those that were tested on held-out training images.

        A run that has no teacher belongs to all settings that are equal in the rest, and one that runs its teacher to
        those in which others read an atlas.
        """
        with_branches = {run.head for run in self.runs if isinstance(run.head, ReleasedTeacher)}
        found: dict[tuple[Any, ...], ExperimentSetting] = {}
        outputs: dict[tuple[Any, ...], dict[TeacherOutputs, None]] = defaultdict(dict)
        teachers: dict[tuple[Any, ...], dict[tuple[Released, TeacherSeeds], None]] = defaultdict(dict)
        for run in self.runs:
            if run.method not in method_names() or run.validation or run.protocol.name not in PROTOCOLS:
                continue
            changes = {name: getattr(run.protocol, name) for name in CHANGEABLE}
            protocol = get_protocol(run.protocol.name).replace(**changes)
            key = (run.dataset, run.fingerprint, protocol.content, run.scale.content, run.processes)
            found.setdefault(
                key, ExperimentSetting(run.dataset, run.fingerprint, protocol, run.scale, processes=run.processes)
            )
            if run.teacher is not None:
                outputs[key][run.teacher_outputs] = None
            if isinstance(run.teacher, ReleasedTeacher):
                file = PretrainedFile(run.teacher, run.teacher in with_branches)
                teachers[key][((run.teacher.network, file),), "shared"] = None
            elif run.teacher is not None:
                own = run.seed > 0 and run.teacher.seed % SELF_TEACHER_SEED == run.seed
                teachers[key][(), "paired" if own else "shared"] = None
        return [
            dataclasses.replace(setting, released=released, teacher_seeds=teacher_seeds, teacher_outputs=read)
            for key, setting in found.items()
            for released, teacher_seeds in _together(teachers[key])
            for read in outputs[key] or LIVE
        ]

    def look_up(self, cells: Iterable[Sequence[Run]], teacher_seeds: TeacherSeeds = "shared") -> LookUp:
        """Make the look-up of cells: the records of all seeds that there are, and None for missing seeds.

        All cells of one student on one dataset have one precision, that in which most are finished, so that they can be
        compared.
        """
        counts: dict[tuple[str, str], Counter[Precision]] = defaultdict(Counter)
        for runs in cells:
            for precision in get_args(Precision):
                finished = _finished(self.replicates(runs[0], teacher_seeds, precision))
                counts[runs[0].dataset, runs[0].student][precision] += finished
        chosen = {key: count.most_common(1)[0][0] for key, count in counts.items()}

        def look_up(runs: Sequence[Run]) -> dict[Run, Record | None]:
            precision = chosen.get((runs[0].dataset, runs[0].student))
            found: dict[Run, Record | None] = dict(self.replicates(runs[0], teacher_seeds, precision))
            known = {run.seed for run in found}
            missing = max(0, len(runs) - len(found))
            return found | dict.fromkeys([run for run in runs if run.seed not in known][:missing])

        return look_up


def _together(teachers: Iterable[tuple[Released, TeacherSeeds]]) -> list[tuple[Released, TeacherSeeds]]:
    """List the ways in which runs were taught, combining files of different networks."""
    ways: list[tuple[Released, TeacherSeeds]] = []
    files: dict[str, list[PretrainedFile]] = defaultdict(list)
    for released, teacher_seeds in teachers:
        if released:
            ((network, file),) = released
            files[network].append(file)
        else:
            ways.append(((), teacher_seeds))
    for number in range(max(map(len, files.values()), default=0)):
        own = ((network, some[min(number, len(some) - 1)]) for network, some in sorted(files.items()))
        ways.append((tuple(own), "shared"))
    return ways or [((), "shared")]


def _finished(records: Mapping[Run, Record]) -> int:
    return sum(record["status"] == "finished" for record in records.values())


def _cell_key(run: Run, teacher_seeds: TeacherSeeds) -> str:
    """Make a key that is equal for the runs of one cell, whatever their seed and precision."""
    return teacher_seeds + json.dumps(
        _cell_content(run, run.seed if teacher_seeds == "paired" else None), sort_keys=True
    )


def _cell_content(part: Run | ReleasedTeacher, paired: int | None, outer: bool = True) -> dict[str, Any]:
    """Collect the fields that tell a cell from others: the seed of a teacher does, that of a first stage does not.

    paired: the student's seed, if its teachers' seeds follow it; then the difference to it counts.
    """
    content = part.model_dump(mode="json")
    if not isinstance(part, Run):
        return content
    for name in OF_ONE_SEED:
        if outer or name != "seed":
            del content[name]
    if not outer and paired is not None:
        content["seed"] -= paired
    for name in ("teacher", "head", "start"):
        inner = getattr(part, name)
        if inner is not None:
            content[name] = _cell_content(inner, paired, outer=name == "start")
    return content
