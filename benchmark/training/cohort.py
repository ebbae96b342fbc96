"""A cohort: runs trained in lockstep over one pass of the data.

A batch, its views and the teacher's outputs are computed once; then every learner takes its own step. A learner never
reads what another one did, so a run gives the same bits alone, in any cohort and in any order.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmark.data.augmentation import EpochPlan, evaluation_batches
from benchmark.data.streaming import training_source
from benchmark.errors import UserError
from benchmark.files import remove_leftovers
from benchmark.provenance import provenance
from benchmark.results import Store
from benchmark.spec import Run
from benchmark.training import checkpoint as checkpoints
from benchmark.training.cost import step_cost
from benchmark.training.devices import make_deterministic, peak_memory, resolve_device
from benchmark.training.distributed import ALONE, Group
from benchmark.training.evaluation import BATCH_SIZE, Evaluation
from benchmark.training.learner import Learner, NonFiniteLoss
from benchmark.training.material import (
    Material,
    Settings,
    first_weights,
    load_teacher,
    loaded_dataset,
    recipe_for,
    training_material,
)
from benchmark.training.teacher import Teacher

REPORT_SECONDS = 0.5
COST_OF_A_CHECKPOINT = 20
"""A checkpoint is written at most once in so many times the seconds that the last one took."""
GO_ON, SAVE, LEAVE = range(3)
"""What follows a step; to leave is to save first."""


@dataclass(frozen=True)
class Progress:
    """What a running cohort says of itself: the epoch (from 1), the step (from 1), and how fast it goes."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    loss: float
    top1: float | None
    seconds_left: float


Listener = Callable[[Progress], None]
Say = Callable[[str], None]
Stop = Callable[[], bool]


def cohort_name(runs: Sequence[Run]) -> str:
    """A name for a set of runs, whatever their order."""
    return hashlib.sha256("".join(sorted(run.digest for run in runs)).encode()).hexdigest()[:16]


def cohort_folder(store: Store, runs: Sequence[Run]) -> Path:
    """Where the checkpoints of a cohort are."""
    return store.cohorts(runs[0].dataset) / cohort_name(runs)


def resume_folder(store: Store, runs: Sequence[Run]) -> Path | None:
    """The folder of the most advanced checkpoint that holds all of the runs."""
    return next(iter(resume_folders(store, runs)), None)


def resume_folders(store: Store, runs: Sequence[Run]) -> list[Path]:
    """The folders of the checkpoints that hold all of the runs, the most advanced first."""
    wanted = {run.id for run in runs}
    found: list[tuple[tuple[int, int], Path]] = []
    cohorts = store.cohorts(runs[0].dataset)
    for folder in sorted(cohorts.iterdir()) if cohorts.is_dir() else []:
        position = checkpoints.latest_position(folder)
        if position is not None and wanted <= set(checkpoints.members(folder)):
            found.append((position, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


class BrokenRuns(Exception):
    """Some runs of a cohort raised errors, so that they have no record."""


class Cohort:
    """Runs in lockstep, from wherever their checkpoint stands to their records."""

    def __init__(
        self,
        runs: Sequence[Run],
        material: Material,
        teacher: Teacher | None,
        settings: Settings,
        listen: Listener = lambda progress: None,
        group: Group = ALONE,
    ) -> None:
        first, dataset = runs[0], material.dataset
        self.settings = settings
        self.group = group
        self.store = Store(settings.runs)
        self.listen = listen
        self.device = resolve_device(settings.device)
        make_deterministic(self.device, settings.threads)
        self.material = material
        self.teacher = teacher
        self.recipe = recipe_for(first.protocol, dataset, first.augmentation)
        names = (first.dataset, first.fraction, first.validation, first.protocol.name, first.seed)
        self.source = training_source(material.train, self.recipe, first.protocol.batch_size, self.device, names)
        if group.size > 1:
            self.source.rows = group.rows
        labels = material.train.labels.to(self.device)
        self.learners = [
            Learner(
                run,
                dataset.num_classes,
                dataset.image_size,
                labels,
                self.source.batches,
                self.device,
                first_weights(run, settings),
                group,
            )
            for run in runs
        ]
        self.members = [run.id for run in runs]
        self.folder = cohort_folder(self.store, runs)
        self.epoch, self.step = 0, 0
        self.seconds, self.resumed, self.images = 0.0, 0, 0
        self.last_top1: float | None = None
        self.broken: dict[str, Exception] = {}
        self._last_report, self._reported_step = time.perf_counter(), 0

    @classmethod
    def from_store(
        cls, runs: Sequence[Run], settings: Settings, listen: Listener = lambda progress: None, group: Group = ALONE
    ) -> Cohort:
        """The cohort of some runs with its images and, from the store or from files, its teacher and heads."""
        device = resolve_device(settings.device)
        make_deterministic(device, settings.threads)
        material = training_material(runs[0], loaded_dataset(settings.dataset, settings.data_root))
        return cls(runs, material, load_teacher(runs, material, settings, device), settings, listen, group)

    def resume(self) -> bool:
        """Take up the most advanced undamaged checkpoint that holds these runs; False where there is none.

        Raises:
            UserError: of the processes that share the cohort, one cannot read what another one could.
        """
        found = self._latest() if self.group.leads else None
        place = self.group.told(None if found is None else (found.epoch, found.step))
        if place is None:
            return False
        # Damaged ones have been put aside by now, so that the others find the same one.
        found = found or self._latest()
        if found is None or (found.epoch, found.step) != place:
            raise UserError(f"the checkpoint in {self.store.cohorts(self.learners[0].run.dataset)} changed; try again")
        self.epoch, self.step = found.epoch, found.step
        self.resumed = found.notes["resumed"] + 1
        for learner in self.learners:
            learner.restore(found.tensors[learner.run.id])
            notes = found.notes["runs"][learner.run.id]
            learner.figures, learner.seconds = notes["figures"], notes["seconds"]
            learner.teacher_seconds = notes["teacher_seconds"]
        self.seconds, self.images = found.notes["seconds"], found.notes["images"]
        return True

    def _latest(self) -> checkpoints.Checkpoint | None:
        folders = resume_folders(self.store, [learner.run for learner in self.learners])
        read = (checkpoints.read_checkpoint(folder, self.members) for folder in folders)
        return next((checkpoint for checkpoint in read if checkpoint is not None), None)

    def train(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end and write the records; False if `stop` asked to leave, with a checkpoint written.

        Of processes that share the cohort, the first one asks `stop` and writes.

        Raises:
            UserError: the disk is full or a folder cannot be written.
            BrokenRuns: some runs raised errors; all others have their records.
        """
        if self.group.leads:
            remove_leftovers(self.folder)
            for learner in self.learners:
                self.store.begin(learner.run)
        last_checkpoint, cost = time.perf_counter(), 0.0
        self._last_report, self._reported_step = time.perf_counter(), self.step
        while self.learners:
            plan = self.source.epoch(self.epoch)
            while self.step < self.source.batches and self.learners:
                self.one_step(plan)
                now = time.perf_counter()
                due = now - last_checkpoint > max(self.settings.checkpoint_seconds, COST_OF_A_CHECKPOINT * cost)
                order = self.group.decided(LEAVE if stop() else SAVE if due else GO_ON)
                if order != GO_ON:
                    self._save()
                    last_checkpoint, cost = time.perf_counter(), time.perf_counter() - now
                if order == LEAVE:
                    return False
            self._finish_epoch()
        if self.broken:
            reasons = "; ".join(f"{run}: {type(error).__name__}: {error}" for run, error in self.broken.items())
            raise BrokenRuns(reasons) from next(iter(self.broken.values()))
        return True

    def one_step(self, plan: EpochPlan) -> None:
        """The next batch of an epoch, for every learner."""
        started = time.perf_counter()
        images = len(self.source.whole(plan, self.step))
        batch = self.source.batch(plan, self.step)
        teacher = self.teacher.on(batch) if self.teacher else None
        for learner in list(self.learners):
            try:
                with self.group.sharing(images):
                    learner.timed_step(batch, teacher, self.epoch, self.step)
            except Exception as error:
                if self.group.size > 1:
                    # The other processes wait for this one's part of the step.
                    raise BrokenRuns(f"{learner.run.id}: {type(error).__name__}: {error}") from error
                # Out of memory, say: this run cannot go on, the others can.
                self.learners.remove(learner)
                self.broken[learner.run.id] = error
                continue
            if self.device.type == "cpu":
                # Elsewhere looking at each loss would make the host wait; there it is looked at once an epoch.
                self._drop_if_not_finite(learner, self.step + 1)
        self.step += 1
        self.images += images
        self.seconds += time.perf_counter() - started
        if time.perf_counter() - self._last_report > REPORT_SECONDS and self.learners:
            self._report()

    def _drop_if_not_finite(self, learner: Learner, steps_done: int) -> None:
        try:
            learner.check_finite(self.epoch, steps_done)
        except NonFiniteLoss as failure:
            self.learners.remove(learner)
            if not self.group.leads:
                return
            self.store.finish(
                learner.run,
                {
                    "status": "failed",
                    "reason": str(failure),
                    "failed_at": {"epoch": failure.epoch + 1, "step": failure.step + 1},
                    "epochs": learner.figures,
                    "provenance": self._provenance(learner),
                },
                {},
            )

    def _finish_epoch(self) -> None:
        for learner in list(self.learners):
            self._drop_if_not_finite(learner, self.source.batches)
        of_training = {learner: learner.end_epoch(self.epoch) for learner in self.learners}
        of_test = self._evaluated() if self.group.leads else {}
        for learner, figures in of_training.items():
            learner.figures.append(figures | of_test.get(learner, {}))
            if self.group.leads:
                self.store.write_epochs(learner.run, learner.figures)
            if self.epoch + 1 == learner.epochs:
                self._finish(learner)
        self.epoch, self.step = self.epoch + 1, 0
        # Steps that were taken since the last report still count in the next one.
        self._reported_step -= self.source.batches

    def _evaluated(self) -> dict[Learner, dict[str, Any]]:
        """The figures of all students on the images that they are evaluated on, in one pass over these."""
        evaluations = {
            learner: Evaluation(
                learner.student, learner.run.precision, learner.method, rotated=self.epoch + 1 == learner.epochs
            )
            for learner in self.learners
            # Of a stage that ends before the classifier there is nothing to measure.
            if learner.student is not None and learner.method.trains == "student"
        }
        if not evaluations:
            return {}
        for images, labels in evaluation_batches(self.material.evaluation, self.recipe, BATCH_SIZE, self.device):
            for evaluation in evaluations.values():
                evaluation.add(images, labels)
        figures = {learner: evaluation.figures for learner, evaluation in evaluations.items()}
        self.last_top1 = next(reversed(figures.values()))["top1"]
        return figures

    def _finish(self, learner: Learner) -> None:
        self.learners.remove(learner)
        if not self.group.leads:
            return
        result: dict[str, Any] = {
            "status": "finished",
            "epochs": learner.figures,
            "final": learner.figures[-1],
            "cost": self._cost(learner),
        }
        measured = [figures for figures in learner.figures if "top1" in figures]
        if measured:
            result["best_on_test"] = max(measured, key=lambda figures: figures["top1"])
        result["provenance"] = self._provenance(learner)
        self.store.finish(learner.run, result, learner.weights())

    def _cost(self, learner: Learner) -> dict[str, int]:
        images, dataset = len(self.material.train), self.material.dataset
        cost = step_cost(learner.run, dataset.num_classes, dataset.image_size, self.material.train.labels)
        return {
            "images": images,
            "image_size": dataset.image_size,
            "parameters": cost.parameters,
            "parameters_in_training": cost.parameters_in_training,
            "multiply_adds": cost.multiply_adds,
            "training_multiply_adds": cost.training_multiply_adds * images * learner.epochs,
        }

    def _provenance(self, learner: Learner) -> dict[str, Any]:
        return provenance(self.settings.command, self.device) | {
            "precision": learner.run.precision,
            "threads": self.settings.threads,
            "seconds": self.seconds,
            "seconds_of_its_own": learner.seconds,
            "seconds_of_its_teacher": learner.teacher_seconds,
            "images_per_second": self.images / self.seconds if self.seconds else None,
            "peak_memory_bytes": peak_memory(self.device),
            "processes": self.group.size,
            "shared": learner.remark,
            "cohort": self.members,
            "resumed": self.resumed,
        }

    def _save(self) -> None:
        for learner in list(self.learners):
            self._drop_if_not_finite(learner, self.step)
        if not self.learners or not self.group.leads:
            return
        runs = {
            learner.run.id: {
                "figures": learner.figures,
                "seconds": learner.seconds,
                "teacher_seconds": learner.teacher_seconds,
            }
            for learner in self.learners
        }
        notes = {"runs": runs, "seconds": self.seconds, "images": self.images, "resumed": self.resumed}
        tensors = {learner.run.id: learner.state() for learner in self.learners}
        checkpoints.write_checkpoint(self.folder, checkpoints.Checkpoint(self.epoch, self.step, tensors, notes))

    def _report(self) -> None:
        now = time.perf_counter()
        if not self.group.leads:
            return
        steps = self.step - self._reported_step
        speed = steps / (now - self._last_report)
        epochs = max(learner.epochs for learner in self.learners)
        steps_left = (epochs - self.epoch) * self.source.batches - self.step
        losses = torch.stack([learner.losses[self.step - 1] for learner in self.learners])
        self.listen(
            Progress(
                epoch=self.epoch + 1,
                epochs=epochs,
                step=self.step,
                steps=self.source.batches,
                images_per_second=speed * self.source.batch_size,
                loss=float(losses.mean()),
                top1=self.last_top1,
                seconds_left=steps_left / speed,
            )
        )
        self._last_report, self._reported_step = now, self.step


def train(
    runs: Sequence[Run],
    settings: Settings,
    stop: Stop = lambda: False,
    listen: Listener = lambda progress: None,
    say: Say = lambda line: None,
    group: Group = ALONE,
) -> bool:
    """Train runs as one cohort from their latest checkpoint to their records; False if `stop` asked to leave before.

    Raises:
        UserError, BrokenRuns: see `Cohort.train`.
    """
    cohort = Cohort.from_store(runs, settings, listen, group)
    if cohort.resume() and group.leads:
        say(f"resumed at epoch {cohort.epoch + 1}, step {cohort.step}")
    return cohort.train(stop)
