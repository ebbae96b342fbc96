"""Networks, branches and methods at 64x64, the size of Tiny-ImageNet, where every network is the one of 32x32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark.backbones import build_branches, build_network
from benchmark.backbones.shapes import network_shape
from benchmark.core.rng import generator
from benchmark.core.spec import LRSchedule, Protocol, Scale
from benchmark.planning.request import RunFactory
from benchmark.plugins.registry import method_class
from benchmark.training.cohort import Cohort
from benchmark.training.dummies import dummy_teacher, random_images
from benchmark.training.inputs import TrainingData
from benchmark.training.settings import TrainSettings
from tests.test_backbones_contract import LIGHT, SMALLEST

SIZE, CLASSES, JOINT_LABELS, BATCH = 64, 200, 800, 2
CPU = torch.device("cpu")
OF_EACH_FAMILY = [name for name in SMALLEST.values() if name in LIGHT and not name.startswith("ImageNet")]
"""The contract's own tests run every network forward at 64x64; backward takes one of each family."""
FEW_SHOT = ("KD", "CRD", "SSKD", "HSSAKD", "LSSKD")
"""The methods of the few-shot figure."""
WITH_CONNECTORS = ("FitNet", "AB-init", "VID", "SP", "CC", "SemCKD")
"""Methods that build modules of their own from the sizes of the maps, or compare maps."""
SHORT = Protocol(name="short", schedule=LRSchedule(epochs=1), learning_rate=1e-3, batch_size=4)


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_the_network_of_32_runs_forward_and_backward_at_64(name: str) -> None:
    network, branches = build_network(name, CLASSES), build_branches(name, JOINT_LABELS)
    network.initialise(lambda parameter: generator("test", parameter))
    branches.initialise(lambda parameter: generator("test", parameter))
    outputs = network(torch.randn(BATCH, 3, SIZE, SIZE, generator=generator("images")))
    assert outputs.logits.shape == (BATCH, CLASSES)
    # Other sizes of map, and nothing else: no weight has a shape that depends on them.
    smaller = network_shape(name, CLASSES, 32)
    assert outputs.pooled.shape == (BATCH, smaller.pooled)
    assert [maps.shape[1] for maps in outputs.branch_maps] == [channels for channels, _, _ in smaller.branch_maps]
    assert outputs.stages[0].shape[2] > smaller.stages[0][1]

    (by_position,) = torch.autograd.grad(outputs.pooled.sum(), outputs.stages[-1], retain_graph=True)
    assert by_position.abs().sum(1).min() > 0, "the average must be over all positions"
    found = branches(outputs.branch_maps)
    assert [branch.logits.shape for branch in found] == [(BATCH, JOINT_LABELS)] * len(smaller.branch_maps)
    losses = [values.logits.square().mean() for values in (outputs, *found)]
    torch.stack(losses).sum().backward()
    for key, parameter in (*network.named_parameters(), *branches.named_parameters()):
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("method", [*FEW_SHOT, *WITH_CONNECTORS])
def test_a_method_takes_a_step_on_the_few_shot_pair(method: str, tmp_path: Path) -> None:
    images = replace(random_images(2 * CLASSES, SIZE, CLASSES), padding=8)
    request = RunFactory(images.name, images.fingerprint, SHORT, Scale(name="test", factor=1), CPU, precision="fp32")
    run = request.run(method, "ResNet20", "ResNet56", 0)
    teacher = dummy_teacher([run], images.num_classes, SIZE, CPU)
    assert (teacher is not None) == method_class(method).needs_teacher
    cohort = Cohort(
        [run], TrainingData(images, images.train, images.test), teacher, TrainSettings(tmp_path, images.name)
    )
    (learner,) = cohort.learners
    before = [parameter.detach().clone() for parameter in learner.parameters]
    cohort.one_step(cohort.source.epoch(0))
    assert not cohort.broken
    assert learner.losses[0].isfinite()
    assert learner.losses[0] > 0
    assert not any(torch.equal(old, new) for old, new in zip(before, learner.parameters, strict=True))
