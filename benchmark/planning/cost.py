"""Estimate what training a run costs before anything is trained, for ordering jobs and for a dry run."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from benchmark.backbones.shapes import CLASSES, ForwardCost, trace_branches, trace_network
from benchmark.core.spec import Run
from benchmark.method.contract import ROTATIONS
from benchmark.plugins.registry import method_class

# Rough costs of one thread of a current processor: arithmetic; what a step spends on each forward or backward of a
# convolution with its norm, whatever its size; how many times as much it spends there on a batch's four rotations; and
# what else a step takes (losses, optimiser, images, its share of the evaluation). A demo of Table II for which these
# say 416 s took 446 s of processor time with AVX-512, starts and report included.
MULTIPLY_ADDS_PER_SECOND = 8e10
SECONDS_PER_CONVOLUTION = 3.5e-4
ROTATED_FACTOR = 3.0
SECONDS_PER_STEP = 4e-3


@functools.cache
def network_cost(name: str, with_branches: bool, image_size: int) -> ForwardCost:
    """Find the cost of a network's forward for one image, with branches for 4 labels a class or without."""
    _, cost = trace_network(name, image_size)
    if not with_branches:
        return cost
    branches = trace_branches(name, CLASSES * ROTATIONS, image_size)
    return ForwardCost(cost.multiply_adds + branches.multiply_adds, cost.convolutions + branches.convolutions)


def training_multiply_adds(run: Run, image_size: int) -> int:
    """Count the multiply-adds of training on one image: three forwards for what learns, one for the teacher.

    A teacher whose logits are read from an atlas costs nothing here (see `benchmark.planning.atlas`).
    """
    return _training_multiply_adds(run.method, run.student, live_teacher(run), run.options.get("past"), image_size)


def live_teacher(run: Run) -> str | None:
    """Name the network of the teacher that each step runs; None if there is none, or if its logits are read."""
    return run.teacher_network if run.teacher_outputs == "live" else None


@functools.cache
def _training_multiply_adds(method: str, student: str, teacher: str | None, past: str | None, image_size: int) -> int:
    cls = method_class(method)
    views = ROTATIONS if cls.view == "rotated" else 1
    own, _ = network_cost(student, cls.student_branches, image_size)
    total = 0
    if cls.trains_student:
        total += round(3 * cls.student_passes * views * own)
    elif cls.student_branches:
        total += 3 * views * (own - network_cost(student, False, image_size)[0])
    if teacher:
        total += views * network_cost(teacher, _reads_branches(method), image_size)[0]
    if past == "previous_weights":
        # The forward of the previous epoch's student.
        total += views * own
    return total


def run_seconds(run: Run, image_size: int, images: int) -> float:
    """Estimate roughly the seconds that a run takes on one thread, its teacher's forwards included."""
    names = (run.method, run.student, live_teacher(run))
    images = round(run.fraction * images)
    return run.schedule.epochs * _epoch_seconds(
        *names, run.options.get("past"), images, run.protocol.batch_size, image_size
    )


@functools.cache
def _epoch_seconds(
    method: str, student: str, teacher: str | None, past: str | None, images: int, batch_size: int, image_size: int
) -> float:
    steps = -(-images // batch_size)
    multiply_adds = _training_multiply_adds(method, student, teacher, past, image_size)
    convolutions = _training_convolutions(method, student, teacher, image_size)
    seconds = SECONDS_PER_STEP + convolutions * _convolution_seconds(method)
    return images * multiply_adds / MULTIPLY_ADDS_PER_SECOND + steps * seconds


def _convolution_seconds(method: str) -> float:
    """Seconds that a step of a method spends on each pass through a convolution, beside the arithmetic."""
    return SECONDS_PER_CONVOLUTION * (ROTATED_FACTOR if method_class(method).view == "rotated" else 1)


def training_convolutions(run: Run, image_size: int) -> float:
    """Count the convolutions that a training step passes, a forward and its backward as three forwards."""
    return _training_convolutions(run.method, run.student, live_teacher(run), image_size)


@functools.cache
def _training_convolutions(method: str, student: str, teacher: str | None, image_size: int) -> float:
    cls = method_class(method)
    convolutions = 0.0
    if cls.trains_student or cls.student_branches:
        convolutions += 3 * cls.student_passes * network_cost(student, cls.student_branches, image_size).convolutions
    if teacher:
        convolutions += network_cost(teacher, _reads_branches(method), image_size).convolutions
    return convolutions


def _reads_branches(method: str) -> bool:
    head = method_class(method).teacher_head
    return head is not None and method_class(head).student_branches


def cohort_seconds(cohort: Sequence[Run], image_size: int, images: int) -> float:
    """Add up the seconds of runs that are trained together, with each view's teacher forward counted once."""
    total = sum(run_seconds(run, image_size, images) for run in cohort)
    shared: set[str] = set()
    for run in cohort:
        if teacher := live_teacher(run):
            view = method_class(run.method).view
            views = ROTATIONS if view == "rotated" else 1
            if view in shared:
                forward = network_cost(teacher, _reads_branches(run.method), image_size)
                shown = round(run.fraction * images)
                steps = -(-shown // run.protocol.batch_size)
                seconds = shown * views * forward.multiply_adds / MULTIPLY_ADDS_PER_SECOND
                seconds += steps * forward.convolutions * _convolution_seconds(run.method)
                total -= run.schedule.epochs * seconds
            shared.add(view)
    return total
