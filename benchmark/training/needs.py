"""Finds what a method asks of its teacher by watching a training step of it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from benchmark.backbones.network import Outputs
from benchmark.core.spec import ReleasedTeacher, Run
from benchmark.method.contract import Method, Step, View
from benchmark.plugins.registry import method_class
from benchmark.plugins.source import user_errors
from benchmark.training.cost import StepProbe

NETWORK = "ResNet8"
"""Student and teacher of the watched step: what a method reads does not depend on how large they are."""
CLASSES, IMAGES, IMAGE_SIZE = 100, 5000, 32


class WatchedOutputs:
    """Outputs of a network that remember which of them were read."""

    def __init__(self, outputs: Outputs, read: set[str]) -> None:
        self._outputs = outputs
        self._read = read

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._outputs, name)


_known: dict[tuple[str, str], bool] = {}


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
    if key not in _known:
        with user_errors(cls, "take a training step"):
            _known[key] = _watch(run) == {("plain", "logits")}
    return _known[key]


def _watch(run: Run) -> set[tuple[View, str]]:
    """List the views that a step asks the teacher for, each with what it reads of the outputs."""
    teacher = ReleasedTeacher(network=NETWORK, sha256="0" * 64)
    small = run.replace(student=NETWORK, teacher=teacher.model_dump(), teacher_outputs="live")
    probe = StepProbe(small, CLASSES, IMAGE_SIZE, torch.arange(IMAGES) % CLASSES)
    read: dict[View, set[str]] = {}
    loss = probe.learner.method.loss

    def watched_loss(step: Step) -> Any:
        def teacher(view: View) -> Any:
            return WatchedOutputs(step.teacher(view), read.setdefault(view, set()))

        return loss(dataclasses.replace(step, teacher=teacher))

    probe.learner.method.loss = watched_loss  # type: ignore[method-assign]
    probe.multiply_adds()
    # A view whose outputs are not read still needs the teacher.
    return {(view, name) for view, names in read.items() for name in names or {""}}
