"""A cohort: runs trained in lockstep over one pass of the data.

A batch, its views and the teacher's outputs are computed once; then every learner takes its own step. A learner never
reads what another one did, so a run gives the same bits alone, in any cohort and in any order.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch

from benchmark.core.devices import make_deterministic, peak_memory, resolve_device
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.data.augmentation import EpochPlan, evaluation_batches
from benchmark.data.dataset import ImageSet
from benchmark.data.streaming import training_source
from benchmark.io.files import remove_leftovers
from benchmark.method.collectives import SINGLE_PROCESS, ProcessGroup
from benchmark.results.provenance import Segment, anonymise, changed_settings, provenance, start_segment
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints
from benchmark.training.checkpoint import cohort_folder, resume_folders
from benchmark.training.cost import run_cost
from benchmark.training.evaluation import BATCH_SIZE, Evaluation
from benchmark.training.failures import RunsFailed, log_failure
from benchmark.training.inputs import (
    TrainingData,
    load_run_dataset,
    load_teacher,
    recipe_for,
    select_training_data,
)
from benchmark.training.learner import Learner
from benchmark.training.settings import LogFn, Progress, ProgressCallback, StopFn, TrainSettings
from benchmark.training.teacher import Teacher

REPORT_SECONDS = 0.5
COST_OF_A_CHECKPOINT = 20
"""Time between two checkpoints, at least, as a multiple of what writing the last one took."""


class Action(IntEnum):
    """What follows a step; STOP saves too."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


class Cohort:
    """Trains runs in lockstep, from their latest checkpoint to their records."""

    def __init__(
        self,
        runs: Sequence[Run],
        data: TrainingData,
        teacher: Teacher | None,
        settings: TrainSettings,
        on_progress: ProgressCallback = lambda progress: None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        first, dataset = runs[0], data.dataset
        self.settings = settings
        self.group = group
        self.store = Store(settings.runs)
        self.on_progress = on_progress
        self.device = resolve_device(settings.device)
        make_deterministic(self.device, settings.threads)
        self.data = data
        # Images on disk stay there and are decoded for each evaluation.
        images = data.evaluation
        self.evaluation = images.to(self.device) if isinstance(images, ImageSet) else images
        self.teacher = teacher
        self.recipe = recipe_for(first.protocol, dataset, first.augmentation)
        names = (first.dataset, first.fraction, first.validation, first.protocol.name, first.seed)
        self.source = training_source(data.train, self.recipe, first.batch_size, self.device, names)
        if group.size > 1:
            self.source.rows = group.rows
        self.learners = [
            Learner(
                run,
                dataset.num_classes,
                dataset.image_size,
                data.train.labels,
                self.source.batches,
                self.device,
                self.store.weights(run.start) if run.start else None,
                group,
            )
            for run in runs
        ]
        if teacher is not None:
            for learner in self.learners:
                if learner.run.teacher is not None and learner.run.teacher_outputs == "live":
                    assert teacher.network is not None
                    learner.method.receive_teacher(teacher.network)
        self.members = [run.id for run in runs]
        self.folder = cohort_folder(self.store, runs)
        self.epoch, self.step = 0, 0
        self.seconds, self.resumed, self.images = 0.0, 0, 0
        self.segments: list[Segment] = [start_segment(self.device, settings.threads, 0, 0)]
        self.code_changed: list[str] = []
        """Methods whose code has changed since the cohort began."""
        self.last_top1: float | None = None
        self.broken: list[str] = []
        """A line on each run that an error ended."""
        self._last_report, self._reported_step = time.perf_counter(), 0

    @classmethod
    def from_store(
        cls,
        runs: Sequence[Run],
        settings: TrainSettings,
        on_progress: ProgressCallback = lambda progress: None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> Cohort:
        """Build the cohort of some runs with its images, and with its teacher and heads from the store or files."""
        device = resolve_device(settings.device)
        make_deterministic(device, settings.threads)
        data = select_training_data(runs[0], load_run_dataset(settings.dataset, settings.data_root))
        return cls(runs, data, load_teacher(runs, data, settings, device), settings, on_progress, group)

    def resume(self) -> bool:
        """Load the most advanced intact checkpoint that holds these runs; False if there is none.

        Raises:
            UserError: a process that shares the cohort cannot read the checkpoint that the first one read.
        """
        checkpoint = self._latest() if self.group.is_main else None
        position = self.group.broadcast_object(None if checkpoint is None else (checkpoint.epoch, checkpoint.step))
        if position is None:
            return False
        # The first process has quarantined corrupt checkpoints by now, so that the others find the same one.
        checkpoint = checkpoint or self._latest()
        if checkpoint is None or (checkpoint.epoch, checkpoint.step) != position:
            raise UserError(f"the checkpoint in {self.store.cohorts(self.learners[0].run.dataset)} changed; try again")
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.resumed = checkpoint.notes["resumed"] + 1
        # Checkpoints of earlier versions have no segments.
        earlier = checkpoint.notes.get("pieces", [])
        self.segments = [*earlier, start_segment(self.device, self.settings.threads, self.epoch, self.step)]
        for learner in self.learners:
            learner.restore(checkpoint.tensors[learner.run.id])
            notes = checkpoint.notes["runs"][learner.run.id]
            learner.figures, learner.seconds = notes["figures"], notes["seconds"]
            learner.teacher_seconds = notes["teacher_seconds"]
            if (begun := notes.get("code", learner.code)) != learner.code:
                self.code_changed.append(learner.run.method)
                learner.code = "+".join(dict.fromkeys([*begun.split("+"), learner.code]))
        self.seconds, self.images = checkpoint.notes["seconds"], checkpoint.notes["images"]
        return True

    def _latest(self) -> checkpoints.Checkpoint | None:
        folders = resume_folders(self.store, [learner.run for learner in self.learners])
        read = (checkpoints.read_checkpoint(folder, self.members) for folder in folders)
        return next((checkpoint for checkpoint in read if checkpoint is not None), None)

    def train(self, stop: StopFn = lambda: False) -> bool:
        """Train to the end and write the records; False if `stop` asked to leave, after a checkpoint was written.

        If several processes share the cohort, the first one asks `stop` and writes.

        Raises:
            UserError: the disk is full or a folder cannot be written.
            RunsFailed: some runs raised errors; all others have their records.
        """
        if self.group.is_main:
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
                action = self.group.broadcast_int(Action.STOP if stop() else Action.SAVE if due else Action.CONTINUE)
                if action != Action.CONTINUE:
                    self._save()
                    last_checkpoint, cost = time.perf_counter(), time.perf_counter() - now
                if action == Action.STOP:
                    # The last report is how far the checkpoint has come: callers judge progress by it.
                    if self.step > self._reported_step and self.learners:
                        self._report()
                    return False
            self._finish_epoch()
        if self.broken:
            raise RunsFailed("; ".join(self.broken))
        return True

    def one_step(self, plan: EpochPlan) -> None:
        """Train every learner on the next batch of an epoch."""
        started = time.perf_counter()
        images = len(self.source.whole(plan, self.step))
        batch = self.source.batch(plan, self.step)
        teacher = self.teacher.on(batch) if self.teacher else None
        for learner in list(self.learners):
            try:
                with self.group.shared_batch(images):
                    learner.timed_step(batch, teacher, self.epoch, self.step)
            except Exception as error:
                line = log_failure(self.store, [learner.run], error)
                if self.group.size > 1:
                    # The other processes wait for this process's share of the step.
                    raise RunsFailed(line) from error
                # If this run is out of memory, for example, the others can still go on.
                self.learners.remove(learner)
                self.broken.append(line)
                continue
            if self.device.type == "cpu":
                # On a GPU, reading each loss would make the host wait, so losses are read once an epoch.
                self._drop_if_not_finite(learner, self.step + 1)
        self.step += 1
        self.images += images
        self.seconds += time.perf_counter() - started
        if time.perf_counter() - self._last_report > REPORT_SECONDS and self.learners:
            self._report()

    def _drop_if_not_finite(self, learner: Learner, steps_done: int) -> None:
        if (step := learner.find_bad_step(steps_done)) is not None:
            self._fail(learner, f"loss not finite at epoch {self.epoch + 1}, step {step}", step)

    def _fail(self, learner: Learner, reason: str, step: int) -> None:
        """Drop a learner and write its record of failure; step: of this epoch, counted from 1."""
        self.learners.remove(learner)
        if not self.group.is_main:
            return
        failed = {
            "status": "failed",
            "reason": reason,
            "failed_at": {"epoch": self.epoch + 1, "step": step},
            "epochs": learner.figures,
            "provenance": self._provenance(learner),
        }
        self.store.finish(learner.run, failed, {})

    def _finish_epoch(self) -> None:
        for learner in list(self.learners):
            self._drop_if_not_finite(learner, self.source.batches)
        train_metrics = {learner: learner.end_epoch(self.epoch) for learner in self.learners}
        test_metrics = self._evaluate() if self.group.is_main else {}
        # The test loss can be infinite after a finite training loss, if norms have statistics of too few batches.
        not_finite = [not math.isfinite(test_metrics.get(learner, {}).get("nll", 0.0)) for learner in self.learners]
        for learner in itertools.compress(list(self.learners), self.group.broadcast_object(not_finite)):
            self._fail(learner, f"loss on the test images not finite after epoch {self.epoch + 1}", self.source.batches)
        for learner in list(self.learners):
            learner.figures.append(train_metrics[learner] | test_metrics.get(learner, {}))
            if self.group.is_main:
                self.store.write_epochs(learner.run, learner.figures)
            if self.epoch + 1 == learner.epochs:
                self._finish(learner)
        self.next_epoch()

    def next_epoch(self) -> None:
        """Go on to the first step of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        # Steps since the last report still count in the next one.
        self._reported_step -= self.source.batches

    def _evaluate(self) -> dict[Learner, dict[str, Any]]:
        """Evaluate all students in one pass over the images."""
        evaluations = {
            learner: Evaluation(
                predictor, learner.run.precision, learner.method, rotated=self.epoch + 1 == learner.epochs
            )
            for learner in self.learners
            # A stage that trains no classifier has nothing to evaluate.
            if (predictor := learner.predictor()) is not None
        }
        if not evaluations:
            return {}
        for images, labels in evaluation_batches(self.evaluation, self.recipe, BATCH_SIZE, self.device):
            for evaluation in evaluations.values():
                evaluation.add(images, labels)
        figures = {learner: evaluation.figures for learner, evaluation in evaluations.items()}
        self.last_top1 = next(reversed(figures.values()))["top1"]
        return figures

    def _finish(self, learner: Learner) -> None:
        self.learners.remove(learner)
        if not self.group.is_main:
            return
        dataset = self.data.dataset
        result: dict[str, Any] = {
            "status": "finished",
            "epochs": learner.figures,
            "final": learner.figures[-1],
            "cost": run_cost(learner.run, dataset.num_classes, dataset.image_size, self.data.train.labels),
        }
        measured = [figures for figures in learner.figures if "top1" in figures]
        if measured:
            result["best_on_test"] = max(measured, key=lambda figures: figures["top1"])
        result["provenance"] = self._provenance(learner)
        self.store.finish(learner.run, result, learner.weights())

    def _provenance(self, learner: Learner) -> dict[str, Any]:
        made = provenance(self.settings.command, self.device) | {
            "method_code": learner.code,
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
            "pieces": self.segments,
        }
        return anonymise(made) if self.settings.without_host else made

    def _save(self) -> None:
        for learner in list(self.learners):
            self._drop_if_not_finite(learner, self.step)
        if not self.learners or not self.group.is_main:
            return
        runs = {
            learner.run.id: {
                "figures": learner.figures,
                "seconds": learner.seconds,
                "teacher_seconds": learner.teacher_seconds,
                "code": learner.code,
            }
            for learner in self.learners
        }
        notes = {
            "runs": runs,
            "seconds": self.seconds,
            "images": self.images,
            "resumed": self.resumed,
            "pieces": self.segments,
        }
        tensors = {learner.run.id: learner.state() for learner in self.learners}
        checkpoints.write_checkpoint(self.folder, checkpoints.Checkpoint(self.epoch, self.step, tensors, notes))

    def _report(self) -> None:
        now = time.perf_counter()
        if not self.group.is_main:
            return
        steps = self.step - self._reported_step
        speed = steps / (now - self._last_report)
        epochs = max(learner.epochs for learner in self.learners)
        steps_left = (epochs - self.epoch) * self.source.batches - self.step
        losses = torch.stack([learner.losses[self.step - 1] for learner in self.learners])
        self.on_progress(
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
    settings: TrainSettings,
    stop: StopFn = lambda: False,
    on_progress: ProgressCallback = lambda progress: None,
    log: LogFn = lambda line: None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> bool:
    """Train runs as one cohort from their latest checkpoint to their records; False if `stop` asked to leave before.

    Raises:
        UserError, RunsFailed: see `Cohort.train`.
    """
    cohort = Cohort.from_store(runs, settings, on_progress, group)
    if cohort.resume() and group.is_main:
        log(f"resumed at epoch {cohort.epoch + 1}, step {cohort.step}")
        if differing := changed_settings(cohort.segments):
            what = ", ".join(name.replace("_", " ") for name in differing)
            log(f"warning: it was begun with different {what}; it will not have the bits of an undisturbed run")
        if cohort.code_changed:
            what = ", ".join(dict.fromkeys(cohort.code_changed))
            log(f"warning: edited since its runs were begun, with the same version: {what}; their records will tell")
    return cohort.train(stop)
