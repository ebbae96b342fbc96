"""What every method promises, with every family of networks it is used with. New methods are picked up by themselves.

Images are few and small, networks narrow, heads small: what is tested here does not depend on size.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import benchmark.backbones as backbones
from benchmark.backbones import build_network, network_names
from benchmark.backbones.four_stage_resnet import FourStageResNet, ImageNetResNet, Plan, four_stage_branches
from benchmark.backbones.shapes import trace_network
from benchmark.core.devices import placed
from benchmark.core.errors import UserError
from benchmark.core.protocols import STAGE_SCHEDULES
from benchmark.core.spec import LRSchedule, Protocol, Run
from benchmark.data import load_dataset
from benchmark.data.augmentation import Batch, TrainingSource
from benchmark.data.dataset import Dataset, ImageSet
from benchmark.method.contract import Method
from benchmark.planning.request import collect_dependencies
from benchmark.plugins.registry import all_methods, method_class
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.training import cohort as cohort_module
from benchmark.training.cohort import Cohort
from benchmark.training.inputs import TrainingData, load_teacher, recipe_for
from benchmark.training.learner import Learner, head_key
from benchmark.training.teacher import Teacher
from tests.engine import request, settings

Pair = tuple[str, str | None]
CPU = torch.device("cpu")
IMAGES, BATCH_SIZE, CLASSES = 29, 8, 10
"""Three whole batches and one of another size."""
LARGER_IMAGES = {"ImageNet-ResNet18": 32, "ImageNet-ResNet34": 32}
"""Rows of an image for networks that halve it five times; the digits have 8."""
SHORT = Protocol(
    name="short",
    schedule=LRSchedule(epochs=2),
    learning_rate=0.01,
    batch_size=BATCH_SIZE,
    method_schedules={name: LRSchedule(epochs=2) for name in STAGE_SCHEDULES},
)
GENTLE = SHORT.replace(name="gentle", learning_rate=1e-12, weight_decay=0.0)
FALL = 1e-4
"""By which share of itself a loss should fall in a step along its gradient."""
SMALL_OPTIONS: dict[str, dict[str, Any]] = {
    "MOKD": {
        "prototypes": 32,
        "hidden": 32,
        "bottleneck": 16,
        "blocks": 1,
        "attention_heads": 2,
        "width": 16,
        "local_crops": 2,
    },
}
STILL_OPTIONS = {"CRD": {"memory_momentum": 0.999999}, "MOKD": {"centre_momentum": 1.0}}
"""Beside them, where a loss is to fall: what else moves in a step, and the loss with it, hardly moves."""
NARROW = {
    "ResNet18": Plan((2, 2, 2, 2), base_width=8),
    "ImageNet-ResNet18": Plan((2, 2, 2, 2), base_width=8, skip_name="downsample"),
    "ImageNet-ResNet34": Plan((3, 4, 6, 3), base_width=8, skip_name="downsample"),
}
"""Networks of families that have no small one, with fewer channels; VGG and ResNeXt become so as a whole."""

PAIRS = (
    ("ResNet8", "ResNet8x4"),
    ("ShuffleNetV1", "WRN-16-2"),
    ("MobileNetV2", "VGG8"),
    ("ImageNet-ResNet18", "ImageNet-ResNet34"),
)
"""Student and teacher of one family and of two, as in the published tables: no method may refuse them."""
UNEQUAL_PAIRS = (("VGG8", "ResNet18"), ("ResNet8", "ResNet18"), ("ResNet18", "ResNet8"))
"""Pairs whose maps do not match in number or size, which a method may refuse."""
UNTAUGHT = {("AB-init", "ResNet18", "ResNet8"): ("layer4",)}
"""Stages that a method which trains nothing but stages leaves, because the teacher has none to match."""
RESUMED_PAIR = ("ResNet8", "WRN-16-2")


FAMILIES = (
    "ResNet8",
    "WRN-40-1",
    "MobileNetV2-TFKD-x1/2",
    "MobileNetV2",
    "PreActResNet18-x1/4",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "ShuffleNetV2-TFKD",
    "VGG8",
    "ResNet18",
    "ImageNet-ResNet18",
    "ResNeXt29",
)
"""The network of each family that the tests use. It is written down, since finding it builds every network there is."""
LEAST_PAIRS, LEAST_METHODS = 3, 5
"""How many pairs each method is tested with at least, and how many methods each pair."""
EVERY_PAIR = os.environ.get("KD_TEST_EVERY_PAIR") == "1"
"""Whether to test every method with every pair instead, which takes twice as long."""


def find_smallest_of_each_family() -> list[str]:
    """Return the smallest network of each class, or the one that can be made narrow."""
    smallest: dict[type, tuple[bool, int, str]] = {}
    for name in network_names():
        with torch.device("meta"):
            network = build_network(name, CLASSES)
        size = sum(parameter.numel() for parameter in network.parameters())
        entry = (name not in NARROW, size, name)
        smallest[type(network)] = min(smallest.get(type(network), entry), entry)
    return [name for *_, name in sorted(smallest.values(), key=lambda entry: entry[1])]


def possible_pairs(cls: type[Method]) -> Sequence[Pair]:
    """Return student and teacher: one of each family if a method has no teacher of its choice, else the pairs above."""
    if not cls.needs_teacher or cls.teaches_itself:
        return [(family, None) for family in FAMILIES]
    if not cls.trains_student:
        # The student of a head is its teacher.
        return [(teacher, teacher) for _, teacher in PAIRS]
    # In turn, so that any three neighbours have one of each kind.
    return [pair for both in itertools.zip_longest(PAIRS, UNEQUAL_PAIRS) for pair in both if pair is not None]


def covering_pairs() -> list[tuple[str, str, str | None]]:
    """Return cells (method, student, teacher) in which each method meets several pairs, and each pair several methods.

    A fault belongs to a method (it misreads maps, or moves what it should not), which shows with any few families, or
    to a family (its maps or frozen parts are not as promised), which shows with any few methods; methods that have the
    same pairs to choose from are dealt them in turn, like cards. What is peculiar to one method and one pair is named
    in UNTAUGHT and always tested. A method that is another one with other options is tested with one pair.
    """
    classes = all_methods()
    derived = {name for name, cls in classes.items() if issubclass(cls, tuple({*classes.values()} - {cls}))}
    groups: dict[tuple[Pair, ...], list[str]] = {}
    for name, cls in classes.items():
        if name not in derived:
            groups.setdefault(tuple(possible_pairs(cls)), []).append(name)
    chosen = {(name, *possible_pairs(classes[name])[0]) for name in derived} | UNTAUGHT.keys()
    for pairs, names in groups.items():
        each = max(LEAST_PAIRS, math.ceil(LEAST_METHODS * len(pairs) / len(names)))
        deal = itertools.cycle(pairs)
        for name in names:
            chosen |= {(name, *pair) for pair in (pairs if EVERY_PAIR else itertools.islice(deal, each))}
    return [(name, *pair) for name, cls in classes.items() for pair in possible_pairs(cls) if (name, *pair) in chosen]


CELLS = covering_pairs()


def cell(method: str, student: str, teacher: str | None) -> Any:
    return pytest.param(method, student, teacher, id=f"{method}-{student}" + (f"<{teacher}" if teacher else ""))


@pytest.fixture(scope="module", autouse=True)
def narrow_networks() -> Iterator[None]:
    """Wide families with fewer channels, as long as these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        resnext, vgg = (importlib.import_module(f"benchmark.backbones.{name}") for name in ("resnext", "vgg"))
        patch.setattr(resnext, "STEM_WIDTH", 16)
        patch.setattr(resnext, "STAGE_WIDTHS", (16, 32, 64))
        patch.setattr(vgg, "WIDTHS", (8, 16, 32, 64, 64))
        for name, plan in NARROW.items():
            build = ImageNetResNet if name.startswith("ImageNet") else FourStageResNet
            entry = replace(
                backbones._NETWORKS[name],
                network=functools.partial(build, plan),
                branches=functools.partial(four_stage_branches, plan),
            )
            patch.setitem(backbones._NETWORKS, name, entry)
        trace_network.cache_clear()
        trained.cache_clear()
        yield
    trace_network.cache_clear()
    trained.cache_clear()


@functools.cache
def digits(size: int = 8) -> Dataset:
    """A few digits, each pixel repeated until there are `size` rows."""
    whole = load_dataset("digits", None)

    def few(images: ImageSet) -> ImageSet:
        times = size // whole.image_size
        pixels = images.images[:IMAGES].repeat_interleave(times, 1).repeat_interleave(times, 2)
        return ImageSet(pixels, images.labels[:IMAGES])

    return replace(whole, train=few(whole.train), test=few(whole.test))


def run_of(method: str, student: str, teacher: str | None, still: bool = False) -> Run:
    options = SMALL_OPTIONS.get(method, {}) | (STILL_OPTIONS.get(method, {}) if still else {})
    return request(protocol=GENTLE if still else SHORT, options={method: options}).run(method, student, teacher, 0)


def source_of(run: Run) -> TrainingSource:
    dataset = digits(LARGER_IMAGES.get(run.student, 8))
    return TrainingSource(dataset.train, recipe_for(run.protocol, dataset), BATCH_SIZE, CPU, ("contract",))


def set_up(run: Run) -> tuple[Learner, Teacher | None, TrainingSource]:
    """A learner as a cohort would make it, its teacher, and its images.

    Raises:
        UserError: the method refuses the networks.
    """
    source = source_of(run)
    first_weights = None if run.start is None else trained(run.start).student.state_dict()
    learner = Learner(run, CLASSES, source.size, source.labels, 1, CPU, first_weights)
    if run.teacher is None:
        return learner, None, source
    network = build_network(run.teacher.student, CLASSES)
    network.load_state_dict(trained(run.teacher).student.state_dict())
    heads = {head_key(run): trained(run.head).method} if isinstance(run.head, Run) else {}
    teacher = Teacher(placed(network, CPU), heads, "fp32", learner.method.needs_preactivations)
    return learner, teacher, source


def take_steps(learner: Learner, teacher: Teacher | None, batch: Batch, steps: int) -> list[float]:
    """One and the same step, with one batch and whatever is drawn for it, taken several times; gives the losses."""
    taught = teacher.on(batch) if teacher else None
    losses = []
    for _ in range(steps):
        learner.step(batch, taught, 0, 0)
        losses.append(float(learner.losses[0]))
    return losses


@functools.cache
def trained(run: Run) -> Learner:
    """What a run that others depend on has learnt from a few steps, with the statistics of the last one."""
    learner, teacher, source = set_up(run.replace(protocol=run.protocol.replace(learning_rate=SHORT.learning_rate)))
    batch = source.batch(source.epoch(0), 0)
    take_steps(learner, teacher, batch, steps=3)
    for module in (learner.student or nn.Identity(), learner.method):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
    take_steps(learner, teacher, batch, steps=1)
    return learner


class Gradients:
    """Which parameters of a student and its method got a gradient in the steps of an optimiser, and what came of it.

    learning: those that ask for one; seen: those that got one; reached: those that got one that is not all zeros;
    moving: those that the optimiser moves; square: of the length of the last step's gradient.
    """

    def __init__(self, learner: Learner) -> None:
        parts = {"student": learner.student or nn.Identity(), "method": learner.method}
        self.parameters = {
            f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()
        }
        self.learning = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        self.seen: set[str] = set()
        self.reached: set[str] = set()
        self._momenta = learner.optimizer.state
        learner.optimizer.register_step_pre_hook(self._look)

    def _look(self, *_: Any) -> None:
        got = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        self.seen |= got.keys()
        self.reached |= {name for name, gradient in got.items() if bool(gradient.any())}
        self.square = sum(float(gradient.double().square().sum()) for gradient in got.values())

    @property
    def moving(self) -> set[str]:
        held = {name: self._momenta.get(parameter, {}) for name, parameter in self.parameters.items()}
        return {name for name, state in held.items() if state and bool(state["momentum_buffer"].any())}


def assert_none(names: set[str], what: str) -> None:
    assert not names, f"{len(names)} parameters {what}: {', '.join(sorted(names)[:4])}"


def state_of(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def assert_unchanged(modules: Sequence[nn.Module], before: list[Tensor], what: str) -> None:
    assert all(map(torch.equal, state_of(modules), before)), f"{what} must stay as it is"


def assert_refusal_helps(error: UserError, student: str, teacher: str | None) -> None:
    assert (student, teacher) in UNEQUAL_PAIRS, f"refused: {error}"
    assert re.search(r"; (choose|use|give|take|pass) ", str(error)), f"says not what to do: {error}"


def assert_plain_network_is_left(learner: Learner, images: Tensor) -> None:
    """The saved student is a network like any other, and says the same without its method."""
    student = learner.student
    weights = learner.weights()["student"]
    plain = placed(build_network(learner.run.student, CLASSES), CPU)
    assert list(weights) == list(plain.state_dict())
    plain.load_state_dict(weights)
    with torch.no_grad():
        logits = student.eval()(images).logits
        assert torch.equal(plain.eval()(images).logits, logits)
        for joint in learner.method.eval().stage_logits(student(images)):
            assert joint.shape == (len(images), 4 * CLASSES)


def test_every_family_of_networks_is_tested() -> None:
    assert sorted(FAMILIES) == sorted(find_smallest_of_each_family())


def test_each_method_meets_several_pairs_and_each_pair_several_methods() -> None:
    classes = all_methods()
    by_method = Counter(method for method, *_ in CELLS)
    by_pair = Counter((student, teacher) for _, student, teacher in CELLS if student != teacher)
    assert by_method.keys() == classes.keys()
    for name, count in by_method.items():
        derived = issubclass(classes[name], tuple({*classes.values()} - {classes[name]}))
        assert count >= LEAST_PAIRS or (derived and count == 1), name
    assert {(family, None) for family in FAMILIES} | {*PAIRS, *UNEQUAL_PAIRS} == by_pair.keys()
    assert min(by_pair.values()) >= LEAST_METHODS, by_pair


@pytest.mark.parametrize(("method", "student", "teacher"), [cell(*each) for each in CELLS])
def test_a_method_learns_and_teaches_only_what_it_should(method: str, student: str, teacher: str | None) -> None:
    run = run_of(method, student, teacher, still=True)
    try:
        learner, guide, source = set_up(run)
    except UserError as error:
        assert_refusal_helps(error, student, teacher)
        pytest.skip(str(error))
    batch = source.batch(source.epoch(0), 0)
    gradients = Gradients(learner)
    frozen = [guide.network, *guide.heads.values()] if guide else []
    network = learner.student
    resting = (
        [network.get_submodule(name) for name in network.after_stages] if learner.method.trains == "stages" else []
    )
    before, before_resting = state_of(frozen), state_of(resting)

    # The first step may set what the loss refers to, such as a memory; it tells how steep the loss is.
    losses = take_steps(learner, guide, batch, steps=1)
    rate = FALL * losses[0] / gradients.square
    learner.run = run.replace(protocol=run.protocol.replace(learning_rate=rate))
    losses = take_steps(learner, guide, batch, steps=2)
    assert losses[1] < losses[0], f"the loss must fall on a fixed batch: {losses}"

    assert_unchanged(frozen, before, "the teacher")
    assert_unchanged(resting, before_resting, "what lies behind the stages")
    untaught = tuple(f"student.{part}." for part in UNTAUGHT.get((method, student, teacher), ()))
    taught = {name for name in gradients.learning if not name.startswith(untaught)} if untaught else gradients.learning
    assert_none(taught - gradients.reached, "get no gradient")
    assert_none(taught - gradients.moving, "are not moved by the optimiser")
    assert_none(gradients.seen - taught, "must get no gradient")
    assert_none(gradients.moving - taught, "must not be moved")
    if network is not None:
        resting_names = {id(parameter) for part in resting for parameter in part.parameters()}
        assert all(p.requires_grad != (id(p) in resting_names) for p in network.parameters())
        assert_plain_network_is_left(learner, batch.view("plain"))


class Killed(BaseException):
    """Stands for a signal that no process survives."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what others depend on is trained once."""
    return tmp_path_factory.mktemp("kept")


def cohort_of(runs: list[Run], folder: Path) -> Cohort:
    dataset = digits()
    data = TrainingData(dataset, dataset.train, dataset.test)
    place = settings(folder, checkpoint_seconds=0.0)
    return Cohort(runs, data, load_teacher(runs, data, place, CPU), place)


def train_what_is_missing(run: Run, kept: Path) -> None:
    for needed in collect_dependencies([run]):
        if Store(kept).missing([needed], retry_failed=True):
            assert cohort_of([needed], kept).train()
            assert not Store(kept).missing([needed], retry_failed=True), f"{needed.id} failed"


def with_dependencies_of(run: Run, kept: Path, folder: Path) -> Path:
    """A folder that holds what a run depends on, and nothing else."""
    for needed in collect_dependencies([run])[:-1]:
        shutil.copytree(Store(kept).folder(needed), Store(folder).folder(needed), dirs_exist_ok=True)
    return folder


def result(run: Run, folder: Path) -> dict[str, Any]:
    record = Store(folder).record(run) or {"status": "missing"}
    assert record["status"] == "finished", record.get("reason")
    return comparable_part(record)


def assert_same_bits(run: Run, left: Path, right: Path) -> None:
    one, other = result(run, left), result(run, right)
    assert one.keys() == other.keys()
    differ = [name for name in one if one[name] != other[name]]
    assert not differ, f"{run.method}: {', '.join(differ)} differ"


def run_to_resume(method: str) -> Run:
    cls = method_class(method)
    student, teacher = RESUMED_PAIR
    return run_of(method, student if cls.trains_student else teacher, teacher)


@pytest.mark.parametrize("method", all_methods())
def test_a_killed_and_resumed_run_gives_the_same_bits(method: str, kept: Path, tmp_path: Path, monkeypatch) -> None:
    run = run_to_resume(method)
    train_what_is_missing(run, kept)
    monkeypatch.setattr(cohort_module, "COST_OF_A_CHECKPOINT", 0)
    folder = with_dependencies_of(run, kept, tmp_path)
    left = iter(range(5))

    def kill() -> bool:
        if next(left, None) is None:
            raise Killed
        return False

    with pytest.raises(Killed):
        cohort_of([run], folder).train(kill)
    resumed = cohort_of([run], folder)
    assert resumed.resume()
    assert (resumed.epoch, resumed.step) == (1, 1), "the last checkpoint is the one before the step that was lost"
    assert resumed.train()
    assert_same_bits(run, folder, kept)


@pytest.fixture(scope="module")
def together(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of all methods are trained beside each other: in one cohort for each teacher that they have.

    Methods without a teacher are in the largest one. A run whose teacher no other has is between two others.
    """
    folder = tmp_path_factory.mktemp("together")
    cohorts: dict[Any, list[Run]] = {}
    for run in map(run_to_resume, all_methods()):
        train_what_is_missing(run, kept)
        with_dependencies_of(run, kept, folder)
        cohorts.setdefault((run.teacher, run.teacher_precision) if run.teacher else None, []).append(run)
    untaught = cohorts.pop(None)
    for runs in cohorts.values():
        if len(runs) == 1:
            shared = {"teacher": runs[0].teacher.model_dump(), "teacher_precision": runs[0].teacher_precision}
            runs[:] = [untaught.pop(), *runs, run_to_resume("KD").replace(**shared)]
    max(cohorts.values(), key=len).extend(untaught)
    for runs in cohorts.values():
        cohort = cohort_of(runs, folder)
        assert cohort.train()
        assert cohort.broken == []
    return folder


@pytest.mark.parametrize("method", all_methods())
def test_a_run_gives_the_same_bits_alone_and_beside_others(method: str, kept: Path, together: Path) -> None:
    assert_same_bits(run_to_resume(method), together, kept)
