"""Methods on mixed images: whatever is said of an image's class or position holds for both images, by their shares."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.core.spec import Run
from benchmark.data.augmentation import Batch
from benchmark.method.contract import Mixture, Outputs, Shape, Step
from benchmark.plugins.registry import all_methods, method_class
from benchmark.training import cohort as cohort_module
from methods.baseline import Baseline
from methods.crd import CRD
from methods.hssakd import HSSAKDJointTeacher
from methods.lsskd import LSSKD
from methods.pskd import PSKD
from tests.contract_runs import (
    RESUMED_PAIR,
    SHORT,
    SMALL_OPTIONS,
    Killed,
    assert_same_bits,
    cohort_of,
    result,
    set_up,
    train_what_is_missing,
    with_dependencies_of,
)
from tests.engine import request
from tests.support import StubBranches, assert_close, outputs_of, shape_from, stub_context, stub_step

CLASSES, IMAGES, TURNS = 3, 16, 4
ALL_LABELS = torch.arange(IMAGES) % CLASSES
INDEX = torch.tensor([4, 9, 2, 15, 7])
PARTNERS = INDEX[torch.tensor([3, 1, 0, 4, 2])]
SHARE = 0.7


def mixture(share: float = SHARE) -> Mixture:
    return Mixture(ALL_LABELS[PARTNERS], PARTNERS, share)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step_of(outputs: Outputs, index: Tensor = INDEX, mixed: Mixture | None = None, **at: Any) -> Step:
    return stub_step(ALL_LABELS[index], index, student=outputs, mixture=mixed, **at)


def soft_cross_entropy(logits: Tensor, targets: Sequence[Sequence[float]]) -> Tensor:
    """Mean over the rows of -sum_c target_c log p_c, term by term."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        total -= sum(share * (value - log_sum) for share, value in zip(target, row, strict=True))
    return torch.tensor(total / len(logits), dtype=torch.float64)


def one_hot(place: int, places: int) -> list[float]:
    return [float(place == other) for other in range(places)]


def blend(share: float, first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]


def label(position: int) -> int:
    return int(ALL_LABELS[position])


def pairs() -> list[tuple[int, int]]:
    """Positions of the first and the second image in each image of the batch."""
    return list(zip(INDEX.tolist(), PARTNERS.tolist(), strict=True))


SHAPE: Shape = shape_from("Tiny", outputs_of(random(5, CLASSES)))


def test_cross_entropy_is_that_with_the_mixed_label() -> None:
    logits = random(5, CLASSES)
    terms = Baseline(stub_context(SHAPE), Baseline.Options())(step_of(outputs_of(logits), mixed=mixture()))
    targets = [blend(SHARE, one_hot(label(a), CLASSES), one_hot(label(b), CLASSES)) for a, b in pairs()]
    assert_close(terms["ce"], soft_cross_entropy(logits, targets))


def rotated_outputs(images: int, seed: int) -> tuple[Outputs, list[Tensor]]:
    """Outputs on the view `rotated`, and joint logits of three branches."""
    branches = [random(TURNS * images, TURNS * CLASSES, seed=seed + place) for place in (1, 2, 3)]
    return outputs_of(random(TURNS * images, CLASSES, seed=seed)), branches


def test_joint_labels_are_those_of_both_images() -> None:
    outputs, branches = rotated_outputs(5, 10)
    context = stub_context(SHAPE, branches=lambda shape, outputs: StubBranches(branches))
    terms = HSSAKDJointTeacher(context, HSSAKDJointTeacher.Options())(step_of(outputs, mixed=mixture()))
    places = TURNS * CLASSES
    joint = [
        blend(SHARE, one_hot(label(a) * TURNS + turn, places), one_hot(label(b) * TURNS + turn, places))
        for a, b in pairs()
        for turn in range(TURNS)
    ]
    assert_close(terms["joint"], torch.stack([soft_cross_entropy(logits, joint) for logits in branches]).sum())
    upright = [blend(SHARE, one_hot(label(a), CLASSES), one_hot(label(b), CLASSES)) for a, b in pairs()]
    assert_close(terms["ce"], soft_cross_entropy(outputs.logits[::TURNS], upright))


SEEN = torch.tensor([0, 2, 3, 4, 7, 9, 11])
"""The images that a table holds a prediction of; the fourth in the batch, and two of the partners, it never saw."""


def softened(alpha: float, hard: list[float], past: dict[int, Tensor], position: int) -> list[float]:
    """(1 - alpha) label + alpha past, the label where there is no past."""
    return blend(1 - alpha, hard, past[position].flatten().tolist()) if position in past else hard


def test_ps_kd_s_targets_mix_both_images_softened_labels_and_leave_the_table_alone() -> None:
    method = PSKD(stub_context(SHAPE, labels=ALL_LABELS), PSKD.Options(table_dtype="float64"))
    before = random(len(SEEN), CLASSES, seed=1)
    method(step_of(outputs_of(before), SEEN, epochs=5))
    past = dict(zip(SEEN.tolist(), F.softmax(before, 1), strict=True))
    kept = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    logits = random(5, CLASSES, seed=2)
    terms = method(step_of(outputs_of(logits), mixed=mixture(), epoch=2, epochs=5))
    alpha = 0.8 * 3 / 5
    targets = [
        blend(SHARE, *(softened(alpha, one_hot(label(image), CLASSES), past, image) for image in pair))
        for pair in pairs()
    ]
    assert_close(terms["ce"], soft_cross_entropy(logits, targets))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in method.state_dict().items())
    method(step_of(outputs_of(logits), epoch=2, epochs=5))
    assert method.history is not None
    assert torch.equal(method.history.table[INDEX], F.softmax(logits, 1))


def test_lsskd_s_targets_mix_both_images_softened_labels_and_leave_the_tables_alone() -> None:
    before, before_branches = rotated_outputs(len(SEEN), 20)
    stub = StubBranches(before_branches)
    context = stub_context(SHAPE, labels=ALL_LABELS, branches=lambda shape, outputs: stub)
    method = LSSKD(context, LSSKD.Options(table_dtype="float64"))
    method(step_of(before, SEEN, epochs=5))
    past = dict(zip(SEEN.tolist(), F.softmax(before.logits[::TURNS], 1), strict=True))
    kept = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    outputs, stub.logits = rotated_outputs(5, 30)
    terms = method(step_of(outputs, mixed=mixture(), epoch=3, epochs=5))
    alpha = 0.8 * 4 / 5
    targets = [
        blend(SHARE, *(softened(alpha, one_hot(label(image), CLASSES), past, image) for image in pair))
        for pair in pairs()
    ]
    assert_close(terms["ce"], soft_cross_entropy(outputs.logits[::TURNS], targets))
    hierarchical = []
    for past_logits, logits in zip(before_branches, stub.logits, strict=True):
        by_turn = F.softmax(past_logits, 1).unflatten(0, (-1, TURNS))
        joint = []
        for pair, turn in itertools.product(pairs(), range(TURNS)):
            past = dict(zip(SEEN.tolist(), by_turn[:, turn], strict=True))
            hard = [one_hot(label(image) * TURNS + turn, TURNS * CLASSES) for image in pair]
            soft = [softened(alpha, own, past, image) for own, image in zip(hard, pair, strict=True)]
            joint.append(blend(SHARE, *soft))
        hierarchical.append(soft_cross_entropy(logits, joint))
    assert_close(terms["hierarchical"], torch.stack(hierarchical).sum())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in method.state_dict().items())
    method(step_of(outputs, epoch=3, epochs=5))
    assert not torch.equal(method.state_dict()["joint_history.table"], kept["joint_history.table"])


def test_crd_s_memory_keeps_what_was_last_said_of_an_image_alone() -> None:
    student, teacher = outputs_of(random(5, CLASSES), random(5, 6)), outputs_of(random(5, CLASSES), random(5, 4))
    context = stub_context(shape_from("S", student), shape_from("T", teacher), ALL_LABELS)
    method = CRD(context, CRD.Options(dimensions=4, negatives=6)).double()
    memories = ("memory_student", "memory_teacher")

    def remembered(mixed: Mixture | None) -> list[Tensor]:
        method(stub_step(ALL_LABELS[INDEX], INDEX, student=student, teacher=teacher, mixture=mixed))
        return [method.get_buffer(name).clone() for name in memories]

    first = remembered(None)
    assert all(map(torch.equal, remembered(mixture()), first))
    again = remembered(None)
    for old, new in zip(first, again, strict=True):
        moved = (old != new).any(1)
        assert moved[INDEX].all()
        assert moved.sum() == len(INDEX)


def relabelled(batch: Batch, index: Tensor, mixed: Mixture | None = None) -> Any:
    """The same pictures, said to be of other images."""
    labels = batch._source.labels[index]
    return SimpleNamespace(labels=labels, index=index, mixture=mixed, view=batch.view)


@dataclass(frozen=True)
class Stepped:
    """What a step left of a learner."""

    terms: dict[str, Tensor]
    losses: Tensor
    parameters: list[Tensor]


class Twins:
    """A learner that has seen all images once and takes one step of the second epoch, from the same state each time."""

    def __init__(self, run: Run) -> None:
        self.learner, self.teacher, self.source = set_up(run)
        for step in range(self.source.batches):
            batch = self.source.batch(self.source.epoch(0), step)
            self.learner.step(batch, self.teacher.on(batch) if self.teacher else None, 0, 0)
        self.learner.end_epoch(0)
        self.state = {name: tensor.clone() for name, tensor in self.learner.state().items()}
        self.batch = self.source.batch(self.source.epoch(1), 0)
        self.partners = self.batch.index.roll(3)

    def after_step(self, index: Tensor, mixed: Mixture | None = None) -> Stepped:
        self.learner.restore(self.state)
        batch = relabelled(self.batch, index, mixed)
        self.learner.step(batch, self.teacher.on(batch) if self.teacher else None, 1, 0)
        return Stepped(
            dict(zip(self.learner.method.weights, self.learner.terms.clone(), strict=True)),
            self.learner.losses.clone(),
            [parameter.detach().clone() for parameter in self.learner.parameters],
        )

    @functools.cached_property
    def first(self) -> Stepped:
        """The step with the images as they are."""
        return self.after_step(self.batch.index)

    def mixed(self, share: float) -> Stepped:
        labels = self.source.labels[self.partners]
        return self.after_step(self.batch.index, Mixture(labels, self.partners, share))


def run_of(method: str, **changes: Any) -> Run:
    student, teacher = RESUMED_PAIR
    student = student if method_class(method).trains_student else teacher
    return request(protocol=SHORT, options=SMALL_OPTIONS | {"SSKD": {"turned_ratio": 0.3}}, **changes).run(
        method, student, teacher, 0
    )


@functools.cache
def twins_of(method: str) -> Twins:
    """The learner of a method, built and trained for an epoch once; every test takes its steps from that state."""
    return Twins(run_of(method))


@pytest.fixture(scope="module", autouse=True)
def forget_learners() -> Iterator[None]:
    yield
    twins_of.cache_clear()


@pytest.mark.parametrize("method", all_methods())
def test_each_term_is_the_mean_over_both_images_by_their_shares(method: str) -> None:
    """Or, where something is chosen by the class, that of the image with the larger share, here the second."""
    twins, share = twins_of(method), 0.3
    first, second, mixed = twins.first, twins.after_step(twins.partners), twins.mixed(share)
    for name in first.terms:
        own, other = float(first.terms[name]), float(second.terms[name])
        assert own != other or name != "ce", "the labels should matter"
        allowed = [pytest.approx(value, rel=1e-5) for value in (share * own + (1 - share) * other, other)]
        assert float(mixed.terms[name]) in allowed, name


@pytest.mark.parametrize("method", all_methods())
def test_a_share_of_all_is_the_image_alone(method: str) -> None:
    twins = twins_of(method)
    alone, mixed = twins.first, twins.mixed(1.0)
    assert torch.equal(mixed.losses, alone.losses)
    assert mixed.terms == alone.terms
    for left, right in zip(mixed.parameters, alone.parameters, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(("share", "own"), [(0.9, True), (0.5, True), (0.4, False)])
def test_sskd_ranks_by_the_class_that_most_of_an_image_belongs_to(share: float, own: bool) -> None:
    twins = twins_of("SSKD")
    first, second = twins.first, twins.after_step(twins.partners)
    assert first.terms["turned"] != second.terms["turned"], "the class should matter"
    assert twins.mixed(share).terms["turned"] == (first if own else second).terms["turned"]


AUGMENTED = ("Baseline", "AB", "CRD", "SSKD", "PS-KD", "LSSKD", "CS-KD")


@pytest.mark.parametrize("method", all_methods())
def test_teachers_and_their_heads_are_trained_with_the_standard_augmentation(method: str) -> None:
    run = run_of(method, augmentation="cutout+cutmix")
    assert run.augmentation == "cutout+cutmix"
    for artifact in (run.teacher, run.head):
        assert artifact is None or artifact.augmentation == "standard"
    assert run.start is None or run.start.augmentation == "cutout+cutmix"
    assert run.id != run_of(method).id


def test_mixed_runs_train_resume_and_share_a_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run_of(method, augmentation="cutout+cutmix") for method in AUGMENTED]
    alone, together, resumed = (tmp_path / name for name in ("alone", "together", "resumed"))
    for run in runs:
        train_what_is_missing(run, alone)
        for folder in (together, resumed):
            with_dependencies_of(run, alone, folder)
    cohort = cohort_of(runs, together)
    batches = [cohort.source.batch(cohort.source.epoch(epoch), step) for epoch in range(2) for step in range(4)]
    assert 0 < sum(batch.mixture is not None for batch in batches) < len(batches)
    assert cohort.train()
    monkeypatch.setattr(cohort_module, "COST_OF_A_CHECKPOINT", 0)
    left: Iterator[int] = iter(range(5))

    def kill() -> bool:
        if next(left, None) is None:
            raise Killed
        return False

    with pytest.raises(Killed):
        cohort_of(runs, resumed).train(kill)
    second = cohort_of(runs, resumed)
    assert second.resume()
    assert second.train()
    for run in runs:
        assert_same_bits(run, alone, together)
        assert_same_bits(run, alone, resumed)
    standard = run_of("Baseline")
    train_what_is_missing(standard, alone)
    assert result(standard, alone)["final"]["loss"] != result(runs[0], alone)["final"]["loss"]
