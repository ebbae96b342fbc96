"""Figures of a network on test images: against torchmetrics, and against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.data.torchvision_operators import import_torchvision
from benchmark.method.contract import joint_labels
from benchmark.training.evaluation import Evaluation, calibration_error, evaluate
from methods.lsskd import LSSKD
from tests.support import TinyNetwork, stub_context, tiny_network


@pytest.mark.parametrize(("images", "classes", "spread"), [(500, 10, 3.0), (7, 3, 0.1), (1, 2, 50.0)])
def test_calibration_error_is_torchmetrics(images: int, classes: int, spread: float) -> None:
    import_torchvision()
    from torchmetrics.functional import classification

    stream = torch.Generator().manual_seed(images)
    logits = spread * torch.randn(images, classes, generator=stream, dtype=torch.float64)
    labels = torch.randint(classes, (images,), generator=stream)
    confidence, predicted = logits.softmax(1).max(1)
    theirs = classification.multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=15, norm="l1")
    # torchmetrics adds up in float32.
    assert calibration_error(confidence, predicted == labels) == pytest.approx(float(theirs), abs=1e-6)


def test_a_network_that_is_sure_and_right_is_calibrated_and_one_that_is_sure_and_wrong_is_not() -> None:
    sure = torch.ones(4, dtype=torch.float64)
    assert calibration_error(sure, torch.ones(4, dtype=torch.bool)) == 0.0
    assert calibration_error(sure, torch.zeros(4, dtype=torch.bool)) == 1.0


@given(size=st.integers(1, 9))
@settings(max_examples=5, deadline=None)
def test_stage_accuracies_are_those_counted_image_by_image(size: int) -> None:
    stream = torch.Generator().manual_seed(3)
    images = torch.randn(9, 3, 4, 4, generator=stream, dtype=torch.float64)
    labels = torch.randint(3, (9,), generator=stream)
    network = tiny_network()
    method = LSSKD(stub_context(TinyNetwork.SHAPE), LSSKD.Options())
    batches = zip(images.split(size), labels.split(size), strict=True)
    whole, plain = Evaluation(network, "fp32", method, rotated=True), Evaluation(network, "fp32", method)
    for rows, of_rows in batches:
        whole.add(rows, of_rows)
        plain.add(rows, of_rows)
    figures = whole.figures
    upright = [0, 0, 0]
    joint = [0, 0, 0]
    for image, label in zip(images, labels, strict=True):
        for turn, target in enumerate(joint_labels(label[None])):
            turned = image.rot90(turn, (1, 2))[None]
            for stage, branch in enumerate(method.branches(network(turned).stages)):
                logits = branch.logits[0]
                joint[stage] += int(logits.argmax() == target)
                if turn == 0:
                    upright[stage] += int(logits.view(3, 4).sum(1).argmax() == label)
    assert figures["stages"] == pytest.approx([100 * count / 9 for count in upright])
    assert figures["stages_joint"] == pytest.approx([100 * count / 36 for count in joint])
    assert plain.figures == {name: value for name, value in figures.items() if name != "stages_joint"}
    assert evaluate(network, [(images, labels)], "fp32") == {
        name: pytest.approx(figures[name]) for name in ("top1", "top5", "nll", "ece")
    }
