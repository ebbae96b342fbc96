"""Compares every student of a store with its teacher, seed by seed, and sums the seeds up."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.core.models import FrozenModel
from benchmark.core.spec import Run, cohort_key
from benchmark.data.dataset import Dataset
from benchmark.export.finished import load_dataset_of, load_finished_run
from benchmark.faithfulness.comparing import ClassChange, Faithfulness, compare_classes, compare_predictions
from benchmark.faithfulness.logits import compute_logits
from benchmark.planning.request import describe_run
from benchmark.results.store import Store
from benchmark.training.inputs import select_training_data
from tables.specification import BASELINE

KEPT_LOGITS = 64
"""Of so many runs at most, so that those of several pairs are not computed again and a large store fits in memory."""


class ComparedRun(FrozenModel):
    """One student beside one teacher.

    method: with what differs from its protocol; pair: the networks, `teacher>student`; taught: whether the student
    learnt from this teacher, or is a control that never met it; images: of the comparison, with their number of
    classes; gained, lost: the classes in which it differs from Baseline of the same seed, the largest change first.
    """

    run: str
    method: str
    pair: str
    dataset: str
    scale: str
    protocol: str
    fraction: float
    epochs: int
    seed: int
    taught: bool
    images: int
    classes: int
    found: Faithfulness
    gained: tuple[ClassChange, ...] = ()
    lost: tuple[ClassChange, ...] = ()


class FaithfulnessReport(FrozenModel):
    """All comparisons of a store, and a line on each run that was left out."""

    compared: tuple[ComparedRun, ...]
    left_out: tuple[str, ...]
    generated_from: str = Field(description="version and commit of the suite")


@dataclass(frozen=True)
class Group:
    """A teacher, the students that it taught, and students of the same network, seed and data that had no teacher."""

    teacher: Run
    taught: tuple[Run, ...]
    controls: tuple[Run, ...]


def group_runs(runs: Iterable[Run], pairs: Sequence[str] = ()) -> list[Group]:
    """Group the students of finished runs by teacher, network and seed, in the order of their ids.

    pairs: only these, as `teacher>student` by the networks that were trained; all if empty.
    """
    students = sorted(runs, key=lambda run: run.id)
    present = {run.digest for run in students}
    free: dict[tuple[str, str], list[Run]] = {}
    taught: dict[tuple[str, str, str], list[Run]] = {}
    for run in students:
        key = run.student, cohort_key(run)
        if run.teacher is None:
            free.setdefault(key, []).append(run)
        elif isinstance(run.teacher, Run) and run.teacher.digest in present:
            taught.setdefault((run.teacher.digest, *key), []).append(run)
    groups = []
    for (digest, student, cohort), members in taught.items():
        teacher = members[0].teacher
        assert isinstance(teacher, Run)
        if not pairs or f"{teacher.student}>{student}" in pairs:
            controls = [run for run in free.get((student, cohort), ()) if run.digest != digest]
            groups.append(Group(teacher, tuple(members), tuple(controls)))
    return groups


class Comparer:
    """Compares the runs of one store; it computes or reads logits, and collects what had to be left out."""

    def __init__(self, root: Path, data_root: Path | None, dataset: str, device: torch.device, keep: bool) -> None:
        self._root, self._data_root, self._dataset = root, data_root, dataset
        self._device, self._keep = device, keep
        self.left_out: list[str] = []
        self._logits = functools.lru_cache(KEPT_LOGITS)(self._compute)

    def compare(self, group: Group, on_run: Callable[[Run], None]) -> Iterator[ComparedRun]:
        """Compare the students of a group with its teacher; calls `on_run` with each run before it predicts.

        A run that cannot be loaded is left out, with a line in `left_out`; a group without its teacher's weights or
        without a student is left out whole.
        """
        on_run(group.teacher)
        teacher = self._try(group.teacher)
        if teacher is None:
            return
        logits: dict[Run, Tensor] = {}
        for run in (*group.taught, *group.controls):
            on_run(run)
            if (own := self._try(run)) is not None:
                logits[run] = own
        labels = select_training_data(group.teacher, self._load(group.teacher)).evaluation.labels
        plain = [run for run in group.controls if run in logits and describe_run(run) == BASELINE]
        for run, own in logits.items():
            changes = compare_classes(own, logits[plain[0]], labels) if plain else ()
            yield ComparedRun(
                run=run.id,
                method=describe_run(run),
                pair=f"{group.teacher.student}>{run.student}",
                dataset=run.dataset,
                scale=run.scale.name,
                protocol=run.protocol.name,
                fraction=run.fraction,
                epochs=run.schedule.epochs,
                seed=run.seed,
                taught=run in group.taught,
                images=len(labels),
                classes=own.shape[1],
                found=compare_predictions(own, teacher, labels),
                gained=tuple(change for change in changes if change.points > 0),
                lost=tuple(change for change in reversed(changes) if change.points < 0),
            )

    def _try(self, run: Run) -> Tensor | None:
        try:
            return self._logits(run)
        except UserError as error:
            if (line := str(error)) not in self.left_out:
                self.left_out.append(line)
            return None

    def _compute(self, run: Run) -> Tensor:
        finished = load_finished_run(str(Store(self._root).folder(run)), self._root)
        return compute_logits(finished, self._load(run), self._device, self._keep)

    def _load(self, run: Run) -> Dataset:
        return load_dataset_of(run, self._dataset, self._data_root)


@dataclass(frozen=True)
class Summary:
    """One method of one pair and setting, over its seeds.

    above_baseline: mean over the seeds of its agreement less that of Baseline of the same seed, in percentage points;
    None where no seed has both. repeated, corrected: None where the teacher is never wrong. gained, lost: by class,
    the mean over the seeds, largest change first.
    """

    first: ComparedRun
    seeds: int
    found: Faithfulness
    above_baseline: float | None
    gained: tuple[ClassChange, ...]
    lost: tuple[ClassChange, ...]


Setting = tuple[str, str, str, str, float, int]
"""What the runs of one list share: pair, dataset, scale, protocol, fraction and epochs."""


def summarise_by_setting(compared: Iterable[ComparedRun]) -> dict[Setting, list[Summary]]:
    """Sum up the seeds of each method, by pair and setting; the method that agrees most with its teacher first."""
    by_setting: dict[Setting, dict[str, list[ComparedRun]]] = {}
    for each in compared:
        setting = (each.pair, each.dataset, each.scale, each.protocol, each.fraction, each.epochs)
        by_setting.setdefault(setting, {}).setdefault(each.method, []).append(each)
    summaries = {}
    for setting, by_method in sorted(by_setting.items()):
        baseline = {each.seed: each.found.agreement for each in by_method.get(BASELINE, ())}
        lines = [_summarise(seeds, baseline) for seeds in by_method.values()]
        summaries[setting] = sorted(lines, key=lambda line: -line.found.agreement)
    return summaries


def _summarise(seeds: Sequence[ComparedRun], baseline: dict[int, float]) -> Summary:
    metrics = {name: _mean([getattr(each.found, name) for each in seeds]) for name in Faithfulness.model_fields}
    above = [each.found.agreement - baseline[each.seed] for each in seeds if each.seed in baseline]
    points: dict[int, float] = {}
    for each in seeds:
        for change in (*each.gained, *each.lost):
            points[change.label] = points.get(change.label, 0.0) + change.points / len(seeds)
    changes = [ClassChange(label=label, points=value) for label, value in sorted(points.items())]
    return Summary(
        first=seeds[0],
        seeds=len(seeds),
        found=Faithfulness.model_validate(metrics),
        above_baseline=_mean(above),
        gained=tuple(sorted((each for each in changes if each.points > 0), key=lambda each: -each.points)),
        lost=tuple(sorted((each for each in changes if each.points < 0), key=lambda each: each.points)),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
