"""Finds what each method needs and costs by watching one training step of it.

The attributes of a method declare its teacher, head and branches, but not which outputs of the networks it reads.
The page of methods says only what was seen to be read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.core.protocols import PROTOCOLS, get_protocol
from benchmark.core.spec import Protocol, Run, Scale
from benchmark.method.contract import Method, Network, PastNetwork, PredictionHistory, View
from benchmark.planning.request import RunFactory
from benchmark.plugins.registry import all_methods, method_class
from benchmark.training.cost import StepProbe
from benchmark.training.dummies import CLASSES
from benchmark.training.learner import build_method

DEFAULT = "lsskd"
TEACHER, STUDENT = "ResNet56", "ResNet20"
FACTS = Path(__file__).parent.parent / "facts.json"
IMAGE_SIZE, IMAGES = 32, 50_000

_READ = {
    "logits": "logits",
    "pooled": "pooled features",
    "stem": "maps",
    "stages": "maps",
    "branch_maps": "maps",
    "averaged": "maps",
    "classifier": "classifier",
    "preactivations": "maps before the activation",
}
_VIEWS = {"rotated": "four rotations", "second": "a second augmentation", "same_class": "images of the same class"}


@dataclass(frozen=True)
class Facts:
    """What was seen of a method on the pair ResNet56>ResNet20 and images like CIFAR-100's.

    needs: in words, beside plain images, labels and the student's logits; extra_parameters: learnable ones beside the
    student's; multiply_adds: of a training step for one image, the teacher's forward included; weights: of the loss
    terms by protocol.
    """

    version: int
    needs: tuple[str, ...]
    extra_parameters: int
    multiply_adds: int
    weights: Mapping[str, Mapping[str, float]]


@functools.cache
def load_facts() -> dict[str, dict[str, Any]]:
    """Load what `python -m benchmark.catalogue` found of each method."""
    return dict(json.loads(FACTS.read_text(encoding="utf-8"))) if FACTS.exists() else {}


def probe_method(name: str) -> Facts:
    """Find the facts of a method (or of a helper of one) in a training step.

    Raises:
        UserError: there is no such method.
    """
    cls = method_class(name)
    probe = StepProbe(make_reference_run(cls, get_protocol(DEFAULT)), CLASSES, IMAGE_SIZE, _labels())
    reads, multiply_adds = probe.watch("student", "teacher")
    read: dict[str, set[str]] = {"student": set(), "teacher": set()}
    for (network, _), names in reads.items():
        read[network] |= names
    needs = _needs(probe.learner.method, read, probe.batch.views)
    # A method is built once for all protocols in which its options are equal, because some methods are large.
    built: dict[str, Method] = {}
    kinds = {}
    for protocol in PROTOCOLS:
        run = make_reference_run(cls, get_protocol(protocol))
        kinds[protocol] = json.dumps(run.options, sort_keys=True)
        if kinds[protocol] not in built:
            built[kinds[protocol]] = build_method(run, CLASSES, IMAGE_SIZE, _labels(), fill=False)
    learnable = sum(part.numel() for part in built[kinds[DEFAULT]].parameters() if part.requires_grad)
    weights = {protocol: built[kind].weights for protocol, kind in kinds.items()}
    return Facts(cls.version, needs, learnable, multiply_adds, weights)


def make_reference_run(cls: type[Method], protocol: Protocol) -> Run:
    """Make the run of a method, or of a head, from which its facts are taken."""
    scale = Scale(name="seen", factor=1)
    factory = RunFactory("random", "random", protocol, scale, torch.device("cpu"), precision="fp32")
    if cls.trains_student:
        return factory.run(cls.name, STUDENT, TEACHER, 0)
    # A head is planned as part of a method that reads it.
    owner = next(other for other in all_methods().values() if other.teacher_head == cls.name)
    head = factory.run(owner.name, STUDENT, TEACHER, 0).head
    assert isinstance(head, Run)
    return head


def _labels() -> Tensor:
    return torch.arange(IMAGES) % CLASSES


def _needs(method: Method, read: Mapping[str, set[str]], views: set[View]) -> tuple[str, ...]:
    def parts(kind: str, leave_out: str = "") -> str:
        own = "logits" if kind == "student" else ""
        return ", ".join(
            dict.fromkeys(_READ[name] for name in _READ if name in read[kind] and name not in (own, leave_out))
        )

    needs, modules = [], list(method.modules())
    if method.needs_teacher:
        who = "a trained network like the student" if method.teaches_itself else "teacher"
        needs.append(f"{who} ({parts('teacher')})" if parts("teacher") else who)
    if method.teacher_head:
        needs.append(f"{method.teacher_head} on the teacher")
    if method.start:
        needs.append(f"a stage before, {method.start}")
    of_student = parts("student", "branch_maps") if method.student_branches else parts("student")
    if of_student:
        needs.append(f"the student's {of_student}")
    if method.student_branches:
        needs.append(f"branches on the {'student' if method.trains_student else 'teacher'}")
    if any(
        isinstance(module, Network) and any(weight.requires_grad for weight in module.parameters())
        for module in modules
    ):
        needs.append("a peer of the student")
    needs += [text for view, text in _VIEWS.items() if view in views]
    if any(isinstance(module, PredictionHistory | PastNetwork) for module in modules):
        needs.append("its own past predictions")
    return tuple(needs)
