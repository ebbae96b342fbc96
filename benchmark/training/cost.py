"""Counts what training a run costs, and finds what its method reads of a teacher, in a training step on noise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark.backbones.cost import OperationCounter, multiply_adds, parameters
from benchmark.backbones.network import Outputs
from benchmark.core.spec import ReleasedTeacher, Run
from benchmark.data.streaming import training_source
from benchmark.method.contract import Method, Step
from benchmark.plugins.registry import method_class
from benchmark.plugins.source import user_errors
from benchmark.training.dummies import CLASSES, dummy_teacher, random_images
from benchmark.training.inputs import recipe_for
from benchmark.training.learner import Learner

BATCH = 8
"""Images of the counted step; terms that grow faster than the batch are too small to matter."""
CPU = torch.device("cpu")
WATCHED_NETWORK = "ResNet8"
"""Student and teacher of a watched step: what a method reads does not depend on how large they are."""
WATCHED_IMAGES, WATCHED_SIZE = 5000, 32


@dataclass(frozen=True)
class StepCost:
    """Parameters, and multiply-adds for one image.

    parameters, multiply_adds: of what predicts after training, which is the student alone unless its method says
    otherwise; parameters_in_training: of all that learns, the method's modules included; training_multiply_adds: of a
    training step, forward and backward, with the forwards of the teacher and its head as if no other run shared them;
    where the teacher's logits are read from an atlas, nobody runs it.
    """

    parameters: int
    parameters_in_training: int
    multiply_adds: int
    training_multiply_adds: int


class _WatchedOutputs:
    """Outputs of a network that remember which of them were read."""

    def __init__(self, outputs: Outputs, read: set[str]) -> None:
        self._outputs = outputs
        self._read = read

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._outputs, name)


class StepProbe:
    """One training step of a run on a few images of noise, from an untrained teacher."""

    def __init__(self, run: Run, num_classes: int, image_size: int, labels: Tensor) -> None:
        """labels: of all training images of the run, int64 [images], because some methods keep a table of them."""
        self.batch_size = min(BATCH, len(labels))
        # Precision, first weights, images and processes do not change what is computed. The scale must not shrink the
        # batch again: a method may skip a part of its loss where the batch is not of the size that it was built for.
        run = run.replace(
            start=None,
            precision="fp32",
            teacher_precision="fp32" if run.teacher else None,
            augmentation="standard",
            processes=1,
            protocol=run.protocol.replace(batch_size=self.batch_size),
            scale=run.scale.replace(batch_factor=1.0),
        )
        images = random_images(max(num_classes, self.batch_size), image_size, num_classes)
        source = training_source(images.train, recipe_for(run.protocol, images), self.batch_size, CPU, ("rehearsal",))
        self.batch = source.batch(source.epoch(0), 0)
        self.learner = Learner(run, num_classes, image_size, labels.cpu(), 1, CPU)
        self.teacher = dummy_teacher([run], num_classes, image_size, CPU, images)

    def multiply_adds(self) -> int:
        """Take a step of the second epoch, where there is a past; returns its multiply-adds per image."""
        # A method may keep something of the step before, such as its images.
        self.learner.step(self.batch, self.teacher.on(self.batch) if self.teacher else None, 0, 0)
        teacher = self.teacher.on(self.batch) if self.teacher else None
        if self.learner.student is not None:
            self.learner.method.end_epoch(0, self.learner.student)
        with OperationCounter() as counter:
            self.learner.step(self.batch, teacher, 1, 0)
        return counter.multiply_adds // self.batch_size

    def watch(self, *networks: str) -> tuple[dict[tuple[str, str], set[str]], int]:
        """Take a step and find what it reads of some networks (`student`, `teacher`); returns its multiply-adds too.

        What it reads: the names of outputs by network and view; the view is empty for images that are none.
        """
        read: dict[tuple[str, str], set[str]] = {}
        loss = self.learner.method.loss

        def watched(network: str, run: Callable[..., Outputs]) -> Callable[..., Any]:
            def outputs(shown: Any, **how: Any) -> Any:
                view = shown if isinstance(shown, str) else ""
                return _WatchedOutputs(run(shown, **how), read.setdefault((network, view), set()))

            return outputs

        def watched_loss(step: Step) -> Any:
            changes: dict[str, Any] = {name: watched(name, getattr(step, name)) for name in networks}
            return loss(dataclasses.replace(step, **changes))

        self.learner.method.loss = watched_loss  # type: ignore[method-assign]
        multiply_adds = self.multiply_adds()
        return read, multiply_adds


_known: dict[tuple[Any, ...], StepCost] = {}


def step_cost(run: Run, num_classes: int, image_size: int, labels: Tensor) -> StepCost:
    """Count the cost of a run, once for all seeds; labels: of its training images, int64 [images].

    The head of a teacher has no student, so its `parameters` and `multiply_adds` are 0.
    """
    options = json.dumps(run.options, sort_keys=True)
    networks = (run.student, run.teacher_network, run.teacher_outputs)
    key = (run.method, options, *networks, num_classes, image_size, len(labels))
    if key not in _known:
        probe = StepProbe(run, num_classes, image_size, labels)
        learning = sum(weight.numel() for weight in probe.learner.parameters)
        alone = (0, 0)
        if probe.learner.student is not None:
            predictor = probe.learner.method.predictor(probe.learner.student)
            alone = (parameters(predictor), multiply_adds(predictor, torch.zeros(1, 3, image_size, image_size)))
        _known[key] = StepCost(alone[0], learning, alone[1], probe.multiply_adds())
    return _known[key]


def run_cost(run: Run, num_classes: int, image_size: int, labels: Tensor) -> dict[str, int]:
    """Count what training a whole run costs, as its record says; labels: see `step_cost`."""
    cost = asdict(step_cost(run, num_classes, image_size, labels))
    cost["training_multiply_adds"] *= len(labels) * run.schedule.epochs
    return {"images": len(labels), "image_size": image_size, **cost}


_plain_logits_only: dict[tuple[str, str], bool] = {}


def reads_plain_logits_only(run: Run) -> bool:
    """Tell whether the run's method needs nothing of its teacher but the logits of the plain view.

    Raises:
        UserError: the method cannot take a step.
    """
    cls = method_class(run.method)
    needs_more = cls.teacher_head or cls.needs_preactivations or cls.receive_teacher is not Method.receive_teacher
    if run.teacher is None or not cls.trains_student or needs_more:
        return False
    key = (run.method, json.dumps(run.options, sort_keys=True))
    if key not in _plain_logits_only:
        with user_errors(cls, "take a training step"):
            teacher = ReleasedTeacher(network=WATCHED_NETWORK, sha256="0" * 64)
            small = run.replace(student=WATCHED_NETWORK, teacher=teacher.model_dump(), teacher_outputs="live")
            probe = StepProbe(small, CLASSES, WATCHED_SIZE, torch.arange(WATCHED_IMAGES) % CLASSES)
            read, _ = probe.watch("teacher")
            # A view whose outputs are not read still needs the teacher.
            _plain_logits_only[key] = read == {("teacher", "plain"): {"logits"}}
    return _plain_logits_only[key]
