"""AB and its first stage against the public implementation's values, and the stage as a run of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmark.backbones.shapes import network_shape
from benchmark.core.errors import UserError
from benchmark.core.spec import LRSchedule, Run
from benchmark.method.contract import Outputs, Shape
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.training.job import run_until_done
from benchmark.training.learner import Learner, fresh_network
from methods.ab import AB, ABInit, boundary_loss, connector
from methods.fitnet import Connector
from tests import engine
from tests.drawn import DrawnCase
from tests.support import (
    Case,
    assert_close,
    assert_gradient,
    assert_step_gradients,
    leaf,
    outputs_of,
    shape_from,
    step_outputs,
    stub_context,
    stub_step,
)


def outputs_with(preactivations: list[Tensor]) -> Outputs:
    """Outputs that hold nothing worth looking at but pre-activations."""
    stem = torch.zeros(len(preactivations[0]), 1, 1, 1, dtype=torch.float64)
    outputs = outputs_of(
        torch.zeros(len(stem), 10, dtype=torch.float64), maps=[stem, *map(torch.zeros_like, preactivations)]
    )
    return replace(outputs, preactivations=tuple(preactivations))


def first_stage(student: Outputs, teacher: Outputs) -> ABInit:
    return ABInit(
        stub_context(shape_from("student", student), shape_from("teacher", teacher)), ABInit.Options()
    ).double()


def test_boundary_losses_connectors_and_gradients_equal_the_public_ones() -> None:
    case = DrawnCase("ab", "basic")
    maps = [leaf(case.input(f"student_feat_{place}")) for place in range(3)]
    student, teacher = outputs_with(maps), outputs_with([case.input(f"teacher_feat_{place}") for place in range(3)])
    method = first_stage(student, teacher)
    assert [type(module) for module in method.connectors] == [nn.Identity, Connector, Connector]
    method.load_state_dict(case.weights(), strict=False)
    pairs = zip(method.connectors, maps, teacher.preactivations, strict=True)
    each = torch.stack([boundary_loss(connect(own), other, 1.0) for connect, own, other in pairs])
    assert_close(each * case.get("hp", "layer_weights") * case.get("hp", "scale"), case.expected("losses"))
    loss, terms = method.loss(stub_step(torch.zeros(8, dtype=torch.int64), student=student, teacher=teacher))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert terms.keys() == {"boundary"}
    for place, tensor in enumerate(maps):
        assert_gradient(case, f"student_feat_{place}", tensor)
    for name, parameter in method.named_parameters():
        expected = case.expected(f"gradw_{name}")
        assert_close(parameter.grad[: len(expected)], expected)


def test_a_step_of_the_first_stage_equals_the_public_one() -> None:
    case = DrawnCase("ab", "init")
    maps = [leaf(case.input(f"student_feat_{place}")) for place in (1, 2, 3)]
    student, teacher = outputs_with(maps), outputs_with([case.input(f"teacher_feat_{place}") for place in (1, 2, 3)])
    method = first_stage(student, teacher)
    method.load_state_dict(case.weights(), strict=False)
    constants = {name: float(case.get("hp", name)) for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(method.parameters(), **constants)
    loss, _ = method.loss(stub_step(torch.zeros(8, dtype=torch.int64), student=student, teacher=teacher))
    loss.backward()
    optimizer.step()
    assert_close(loss, case.expected("total_loss"))
    for place, tensor in enumerate(maps, start=1):
        assert_gradient(case, f"student_feat_{place}", tensor)
    for name, parameter in method.named_parameters():
        assert_close(parameter, case.expected(f"after_step_{name}"))


def test_after_the_first_stage_only_the_labels_are_left_as_in_the_public_training_step() -> None:
    case = Case("ab", "step")
    student, teacher = step_outputs(case, "student", True), step_outputs(case, "teacher", False)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    # Without KD it must not even ask for the teacher's outputs.
    loss, terms = AB(context, AB.Options(kd_weight=0)).loss(stub_step(case.input("labels"), student=student))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert terms.keys() == {"ce"}
    assert_step_gradients(case, student)
    _, terms = AB(context, AB.Options()).loss(stub_step(case.input("labels"), student=student, teacher=teacher))
    # The golden KD step is 0.1 * ce + 0.9 * kd on the same tensors.
    assert_close(terms["kd"], (Case("kd", "step").expected("total_loss") - 0.1 * terms["ce"]) / 0.9)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), st.floats(-2, 2)), min_size=1),
    st.sampled_from([0.5, 1.0]),
)
def test_a_neuron_costs_what_it_lacks_to_the_margin_on_the_teachers_side(
    neurons: list[tuple[float, float]], margin: float
) -> None:
    expected = 0.0
    for student, teacher in neurons:
        if teacher <= 0 and student > -margin:
            expected += (student + margin) ** 2
        elif teacher > 0 and student <= margin:
            expected += (student - margin) ** 2
    own, other = torch.tensor(neurons, dtype=torch.float64)[:, :, None, None].unbind(1)
    loss = boundary_loss(own[None], other[None], margin)
    assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_the_first_stage_pairs_stages_as_far_as_both_networks_have_them() -> None:
    maps = [torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    teacher = outputs_with(maps[3:])
    losses = []
    for student in (outputs_with(maps[:3]), outputs_with(maps[:2])):
        step = stub_step(torch.zeros(4, dtype=torch.int64), student=student, teacher=teacher)
        losses.append(first_stage(student, teacher).loss(step)[0])
    first, second = (boundary_loss(own, other, 1.0) for own, other in zip(maps, maps[3:], strict=False))
    assert_close(losses[0], 0.003 * (first / 2 + second))
    assert_close(losses[0], losses[1])


def test_a_pair_of_networks_that_cannot_be_connected_is_refused_by_name() -> None:
    small, large = (Shape(name, 10, (4, 32, 32), ((8, rows, rows),), 8) for name, rows in (("small", 5), ("large", 16)))
    with pytest.raises(UserError, match=r"AB: stage 1 of small \(8, 5, 5\).*large \(8, 16, 16\)"):
        ABInit(stub_context(small, large), ABInit.Options())


PAIRS = (
    ("WRN-40-2", "WRN-16-2"),
    ("WRN-40-2", "WRN-40-1"),
    ("ResNet56", "ResNet20"),
    ("ResNet32x4", "ResNet8x4"),
    ("WRN-40-2", "ShuffleNetV1"),
    ("ResNet32x4", "ShuffleNetV2"),
    ("VGG13", "VGG8"),
    ("VGG13", "MobileNetV2"),
    ("ResNet50", "VGG8"),
)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_the_stages_of_the_published_pairs_can_be_connected(teacher: str, student: str) -> None:
    shapes = [network_shape(name, 100, 32) for name in (student, teacher)]
    method = ABInit(stub_context(*shapes), ABInit.Options())
    for connect, own, other in zip(method.connectors, shapes[0].stages, shapes[1].stages, strict=True):
        assert connect(torch.zeros(2, *own)).shape[1:] == other


def test_maps_of_one_size_are_connected_by_nothing_that_learns() -> None:
    assert isinstance(connector((3, 4, 4), (3, 4, 4)), nn.Identity)
    assert isinstance(connector((3, 4, 4), (5, 4, 4)), Connector)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run of AB whose first stage is trained, for two epochs; its student has a norm behind the stages."""
    schedules = engine.SHORT.method_schedules | {"AB-init": LRSchedule(epochs=2)}
    protocol = engine.SHORT.replace(method_schedules=schedules)
    run = engine.shrunk(engine.request("fp32", protocol).run("AB", "WRN-16-2", "ResNet20", 0))
    place = engine.settings(tmp_path_factory.mktemp("ab"))
    engine.train_dependencies([run], place)
    return run, place.runs


def test_the_student_starts_from_the_weights_that_the_first_stage_left(trained: tuple[Run, Path]) -> None:
    run, folder = trained
    assert run.start is not None
    assert (run.start.method, run.start.teacher) == ("AB-init", run.teacher)
    place = engine.settings(folder)
    left = Store(folder).weights(run.start)
    learner = Learner(run, 10, 8, torch.arange(64) % 10, 1, torch.device("cpu"), left)
    assert learner.student is not None
    for name, tensor in learner.student.state_dict().items():
        assert torch.equal(tensor, left[name]), name
    assert run_until_done([run], place)
    (record,) = engine.records([run], place).values()
    assert record["status"] == "finished"


def test_the_first_stage_trains_the_stages_and_nothing_behind_them(trained: tuple[Run, Path]) -> None:
    run, folder = trained
    assert run.start is not None
    fresh = fresh_network(run.student, 10, run.seed)
    untouched = {name for name in fresh.state_dict() if name.split(".")[0] in fresh.after_stages}
    assert {"bn1.weight", "bn1.running_mean", "bn1.num_batches_tracked", "fc.weight"} <= untouched
    left = Store(folder).weights(run.start)
    unchanged = {name for name, tensor in fresh.state_dict().items() if torch.equal(tensor, left[name])}
    assert unchanged == untouched


def test_a_first_stage_that_is_killed_and_resumed_gives_the_same_bits(
    trained: tuple[Run, Path], tmp_path: Path
) -> None:
    run, folder = trained
    assert run.start is not None
    place = engine.settings(tmp_path)
    engine.train_dependencies([run.start], place)
    # In the middle of the second epoch of nine steps, when an evaluation lies behind it.
    asked = iter([False] * 12 + [True])
    assert not run_until_done([run.start], place, stop=lambda: next(asked))
    assert run_until_done([run.start], place)
    (resumed,) = engine.records([run.start], place).values()
    undisturbed = Store(folder).record(run.start)
    assert undisturbed is not None
    assert resumed["provenance"]["resumed"] == 1
    assert comparable_part(resumed) == comparable_part(undisturbed)
