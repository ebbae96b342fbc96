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
    cls, views = method_class(run.method), _count_views(run)
    own, _ = network_cost(run.student, cls.student_branches, image_size)
    total = 0
    if cls.trains_student:
        total += round(3 * cls.student_passes * views * own)
    elif cls.student_branches:
        total += 3 * views * (own - network_cost(run.student, False, image_size).multiply_adds)
    if live_teacher(run):
        total += views * _teacher_cost(run, image_size).multiply_adds
    if run.options.get("past") == "previous_weights":
        # The forward of the previous epoch's student.
        total += views * own
    return total


def live_teacher(run: Run) -> str | None:
    """Name the network of the teacher that each step runs; None if there is none, or if its logits are read."""
    return run.teacher_network if run.teacher_outputs == "live" else None


def _count_views(run: Run) -> int:
    return ROTATIONS if method_class(run.method).view == "rotated" else 1


def _teacher_cost(run: Run, image_size: int) -> ForwardCost:
    """Find the cost of the forward of a run's teacher for one image, with the branches that the method reads."""
    head = method_class(run.method).teacher_head
    assert run.teacher_network is not None
    return network_cost(run.teacher_network, head is not None and method_class(head).student_branches, image_size)


def run_seconds(run: Run, image_size: int, images: int) -> float:
    """Estimate roughly the seconds that a run takes on one thread, its teacher's forwards included."""
    shown = round(run.fraction * images)
    steps = -(-shown // run.batch_size)
    step_seconds = SECONDS_PER_STEP + training_convolutions(run, image_size) * _convolution_seconds(run)
    arithmetic = shown * training_multiply_adds(run, image_size) / MULTIPLY_ADDS_PER_SECOND
    return run.schedule.epochs * (arithmetic + steps * step_seconds)


def _convolution_seconds(run: Run) -> float:
    """Seconds that a step of a run spends on each pass through a convolution, beside the arithmetic."""
    return SECONDS_PER_CONVOLUTION * (ROTATED_FACTOR if _count_views(run) > 1 else 1)


def training_convolutions(run: Run, image_size: int) -> float:
    """Count the convolutions that a training step passes, a forward and its backward as three forwards."""
    cls = method_class(run.method)
    convolutions = 0.0
    if cls.trains_student or cls.student_branches:
        own = network_cost(run.student, cls.student_branches, image_size)
        convolutions += 3 * cls.student_passes * own.convolutions
    if live_teacher(run):
        convolutions += _teacher_cost(run, image_size).convolutions
    return convolutions


def cohort_seconds(cohort: Sequence[Run], image_size: int, images: int) -> float:
    """Add up the seconds of runs that are trained together, with each view's teacher forward counted once."""
    total = sum(run_seconds(run, image_size, images) for run in cohort)
    shared: set[str] = set()
    for run in cohort:
        view = method_class(run.method).view
        if live_teacher(run) and view in shared:
            forward = _teacher_cost(run, image_size)
            shown = round(run.fraction * images)
            steps = -(-shown // run.batch_size)
            seconds = shown * _count_views(run) * forward.multiply_adds / MULTIPLY_ADDS_PER_SECOND
            seconds += steps * forward.convolutions * _convolution_seconds(run)
            total -= run.schedule.epochs * seconds
        if live_teacher(run):
            shared.add(view)
    return total
