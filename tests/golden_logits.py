"""Golden cases of methods that see logits only: given logits, and two whole steps of small networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmark.method.contract import Method, Outputs, Step
from tests.golden_networks import assert_state, optimiser_of
from tests.support import (
    Case,
    assert_close,
    assert_gradient,
    leaf,
    outputs_of,
    shape_from,
    stub_context,
    stub_step,
)

STANDARD = (
    "basic",
    "hundred_classes",
    "label_is_argmax",
    "label_is_not_argmax",
    "two_classes",
    "tie",
    "equal_teacher",
    "equal_student",
    "equal_both",
    "identical",
    "temperature_1",
    "batch_of_2",
    "batch_of_1",
    "large_logits",
    "huge_logits",
)
"""The cases that every one of these methods has."""
WITHOUT_LABELS = [name for name in STANDARD if not name.startswith("label") and name not in ("tie", "hundred_classes")]
"""Those that are kept of losses that see no labels."""
EPOCHS = 240
"""Of the recipe; the public epoch 7 is epoch 6 of a step."""


def given_logits(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Student's logits, which collect a gradient, teacher's logits and labels."""
    return (*given_pair(case), case.input("labels"))


def given_pair(case: Case) -> tuple[Tensor, Tensor]:
    """Student's logits, which collect a gradient, and teacher's logits."""
    return leaf(case.input("student_logits")), case.input("teacher_logits")


def build(cls: type[Method], student: Tensor, teacher: Tensor, **options: Any) -> Method:
    """A method that sees networks with these logits."""
    shapes = [shape_from(name, outputs_of(logits)) for name, logits in (("student", student), ("teacher", teacher))]
    return cls(stub_context(*shapes), cls.Options(**options)).double()


def step_of(student: Tensor, teacher: Tensor, labels: Tensor, epoch: int = EPOCHS, **more: Any) -> Step:
    """A step with these logits, in an epoch that is counted from 1, of 240."""
    return stub_step(labels, None, epoch - 1, EPOCHS, student=outputs_of(student), teacher=outputs_of(teacher), **more)


def assert_step_equals(case: Case, cls: type[Method], epoch: int = EPOCHS, **options: Any) -> None:
    """The total loss on given logits and its gradient are the public ones."""
    student, teacher, labels = given_logits(case)
    loss, _ = build(cls, student, teacher, **options).loss(step_of(student, teacher, labels, epoch))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "student_logits", student)


def _network(weights: dict[str, Tensor]) -> nn.Sequential:
    hidden, inputs = weights["0.weight"].shape
    network = nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 10))
    network.double().load_state_dict(weights, strict=False)
    return network


def assert_two_steps_equal(case: Case, cls: type[Method], epoch: int = EPOCHS, **options: Any) -> None:
    """Losses, weights and statistics of two steps of the optimiser are the public trainer's."""
    student = _network(case.weights("student.")).train()
    teacher = _network(case.weights("teacher.")).eval()

    def run(network: nn.Module, inputs: Tensor) -> Outputs:
        return outputs_of(network(inputs))

    optimizer = optimiser_of(case, student)
    method = None
    for number in (1, 2):
        inputs, labels = case.input(f"inputs_batch{number}"), case.input(f"labels_batch{number}")
        own = run(student, inputs)
        with torch.no_grad():
            other = run(teacher, inputs)
        method = method or build(cls, own.logits, other.logits, **options)
        loss, _ = method.loss(step_of(own.logits, other.logits, labels, epoch))
        assert_close(loss, case.expected(f"step{number}_total_loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_state(case, {"student.": student})
