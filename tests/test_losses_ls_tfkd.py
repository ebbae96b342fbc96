"""Label smoothing and teacher-free KD against the public implementation's values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from benchmark.backbones import network_names
from benchmark.core.protocols import PROTOCOLS
from benchmark.method.contract import Method, Mixture
from benchmark.plugins.registry import resolve_options
from methods.baseline import Baseline, cross_entropy
from methods.ls import LS, smoothed_targets
from methods.tfkd import TFKDReg, TFKDSelf, divergence_by_element, regularisation_loss, virtual_teacher
from tests.support import Case, assert_close, assert_gradient, leaf, outputs_of, shape_from, stub_context, stub_step


def method_on(cls: type[Method], logits: Tensor, **options: Any) -> Method:
    """The method for students that give such logits."""
    shape = shape_from("student", outputs_of(logits))
    return cls(stub_context(shape, shape if cls.needs_teacher else None), cls.Options(**options))


@pytest.mark.parametrize("name", ["ten_classes", "hundred_classes"])
def test_smoothing_over_the_others_and_its_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("label_smoothing", name)
    logits = leaf(case.input("student_logits"))
    method = method_on(LS, logits, smoothed="others", epsilon=float(case.get("hp", "epsilon")))
    loss, terms = method.loss(stub_step(case.input("labels"), student=outputs_of(logits)))
    loss.backward()
    assert terms.keys() == {"ce"}
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", logits)


@pytest.mark.parametrize("name", ["ten_classes", "hundred_classes"])
def test_smoothing_over_all_classes_is_the_default_and_that_of_pytorch(name: str) -> None:
    case = Case("label_smoothing", name)
    logits = case.input("student_logits")
    loss, _ = method_on(LS, logits).loss(stub_step(case.input("labels"), student=outputs_of(logits)))
    assert_close(loss, case.expected("torch_builtin_label_smoothing_for_contrast"))
    assert_close(loss, F.cross_entropy(logits, case.input("labels"), label_smoothing=0.1))


@settings(deadline=None)
@given(st.integers(2, 100), st.floats(0, 0.999), st.sampled_from(["all", "others"]))
def test_smoothed_targets_are_distributions_that_keep_one_less_epsilon(
    classes: int, epsilon: float, smoothed: Any
) -> None:
    hard = F.one_hot(torch.tensor([0, classes - 1]), classes).double()
    targets = smoothed_targets(hard, epsilon, smoothed)
    assert_close(targets.sum(1), torch.ones(2, dtype=torch.float64))
    kept = 1 - epsilon + (epsilon / classes if smoothed == "all" else 0)
    assert_close(targets[0, 0], torch.tensor(kept, dtype=torch.float64))
    others = targets[hard == 0]
    assert torch.equal(others, others[:1].expand_as(others))


def test_no_smoothing_is_the_baseline() -> None:
    case = Case("label_smoothing", "ten_classes")
    step = stub_step(case.input("labels"), student=outputs_of(case.input("student_logits")))
    logits = case.input("student_logits")
    baseline, _ = method_on(Baseline, logits).loss(step)
    for smoothed in ("all", "others"):
        assert_close(method_on(LS, logits, epsilon=0, smoothed=smoothed).loss(step)[0], baseline)


def test_the_protocol_of_tfkd_smooths_over_the_others() -> None:
    assert resolve_options(LS, PROTOCOLS["tfkd"]).smoothed == "others"
    assert resolve_options(LS, PROTOCOLS["lsskd"]).smoothed == "all"


@pytest.mark.parametrize(
    "setting",
    ["resnet18_setting", "mobilenetv2_setting", "shufflenetv2_setting", "googlenet_setting", "resnet18_100_classes"],
)
def test_regularisation_and_its_gradient_equal_the_public_ones(setting: str) -> None:
    case = Case("tfkd_reg", setting)
    logits = leaf(case.input("student_logits"))
    names = {"alpha": "alpha", "temperature": "T", "multiplier": "multiplier", "correct_probability": "correct_prob"}
    method = method_on(TFKDReg, logits, **{ours: float(case.get("hp", public)) for ours, public in names.items()})
    loss, terms = method.loss(stub_step(case.input("labels"), student=outputs_of(logits)))
    loss.backward()
    assert terms.keys() == {"ce", "virtual_kd"}
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "student_logits", logits)


def test_the_softened_virtual_teacher_is_almost_uniform() -> None:
    labels = torch.tensor([3, 99])
    teacher = virtual_teacher(labels, 100, 0.99, torch.zeros((), dtype=torch.float64))
    assert_close(teacher.sum(1), torch.ones(2, dtype=torch.float64))
    assert_close(teacher[[0, 1], labels], torch.full((2,), 0.99, dtype=torch.float64))
    softened = (teacher / 20).softmax(1)
    torch.testing.assert_close(softened[0, 3], torch.tensor(0.0105, dtype=torch.float64), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "setting",
    ["mobilenet_setting", "resnet18_setting", "googlenet_setting", "resnext29_setting", "plain_kd_of_same_repo"],
)
def test_self_training_and_its_gradient_equal_the_public_ones(setting: str) -> None:
    case = Case("tfkd_self", setting)
    logits, teacher = leaf(case.input("student_logits")), case.input("teacher_logits")
    # Conventional KD of the same code has no multiplier.
    multiplier = 1.0 if setting == "plain_kd_of_same_repo" else float(case.get("hp", "multiplier"))
    alpha, temperature = float(case.get("hp", "alpha")), float(case.get("hp", "T"))
    method = method_on(TFKDSelf, logits, alpha=alpha, temperature=temperature, multiplier=multiplier)
    step = stub_step(case.input("labels"), student=outputs_of(logits), teacher=outputs_of(teacher))
    loss, terms = method.loss(step)
    loss.backward()
    assert terms.keys() == {"ce", "kd"}
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "student_logits", logits)


def test_the_mean_over_elements_is_that_of_pytorch_for_any_number_of_classes() -> None:
    for classes in (2, 10, 100):
        generator = torch.Generator().manual_seed(classes)
        logits, teacher = torch.randn(2, 8, classes, dtype=torch.float64, generator=generator)
        by_pytorch = F.kl_div((logits / 6).log_softmax(1), (teacher / 6).softmax(1), reduction="none").mean() * 36
        assert_close(divergence_by_element(logits, teacher, 6.0), by_pytorch)


# As the public files have them; the second half of each list is ours where those say nothing.
REGULARISED = {
    "ResNet18": (0.1, 20, 100),
    "MobileNetV2-TFKD": (0.95, 40, 1),
    "ShuffleNetV2-TFKD": (0.95, 10, 1),
    "PreActResNet18": (0.1, 20, 100),
    "PreActResNet18-x1/4": (0.1, 20, 100),
    "MobileNetV2-TFKD-x1/2": (0.95, 40, 1),
    "MobileNetV2": (0.95, 40, 1),
    "MobileNetV2-s1": (0.95, 40, 1),
    "ShuffleNetV2": (0.95, 10, 1),
    "ResNeXt29": (0.5, 40, 100),
    "ResNet101": (0.1, 20, 100),
    "ResNet101-x1/4": (0.1, 20, 100),
    "WRN-16-2": (0.1, 20, 100),
}
SELF_TRAINED = {
    "ResNet18": (0.95, 6, 50),
    "MobileNetV2-TFKD": (0.95, 20, 1),
    "ShuffleNetV2-TFKD": (0.95, 20, 1),
    "ResNeXt29": (0.9, 20, 100),
    "PreActResNet18": (0.95, 6, 50),
    "PreActResNet18-x1/4": (0.95, 6, 50),
    "MobileNetV2-TFKD-x1/2": (0.95, 20, 1),
    "MobileNetV2": (0.95, 20, 1),
    "MobileNetV2-s1": (0.95, 20, 1),
    "ShuffleNetV2": (0.95, 20, 1),
    "ResNet50": (0.95, 6, 50),
    "ResNet101": (0.95, 6, 50),
    "ResNet101-x1/4": (0.95, 6, 50),
    "WRN-16-2": (0.95, 6, 50),
}


@pytest.mark.parametrize(("cls", "settings"), [(TFKDReg, REGULARISED), (TFKDSelf, SELF_TRAINED)])
def test_each_network_has_its_published_setting(cls: type[Method], settings: dict[str, tuple[float, ...]]) -> None:
    for network, setting in settings.items():
        options = resolve_options(cls, PROTOCOLS["tfkd"], network)
        assert (options.alpha, options.temperature, options.multiplier) == setting, network
    assert resolve_options(cls, PROTOCOLS["tfkd"], "ResNeXt29", {"alpha": 0.25}).alpha == 0.25
    assert set(cls.network_options) <= set(network_names())


def test_mixed_images_have_the_loss_of_both_labels_by_their_shares() -> None:
    case = Case("tfkd_self", "resnet18_setting")
    logits, labels = case.input("student_logits"), case.input("labels")
    other = labels.flip(0)
    outputs = {"student": outputs_of(logits), "teacher": outputs_of(case.input("teacher_logits"))}
    for cls in (LS, TFKDReg, TFKDSelf):
        method = method_on(cls, logits)
        mixture = Mixture(other, torch.arange(8).flip(0), 0.75)
        mixed, _ = method.loss(stub_step(labels, **outputs, mixture=mixture))
        first, _ = method.loss(stub_step(labels, **outputs))
        second, _ = method.loss(stub_step(other, **outputs))
        assert (first - second).abs() > 1e-3
        assert_close(mixed, 0.75 * first + 0.25 * second)


def test_losses_compute_in_float32_under_autocast() -> None:
    logits = (torch.randn(8, 10, generator=torch.Generator().manual_seed(1)) * 3).bfloat16()
    labels = torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        smoothed = method_on(LS, logits).loss(stub_step(labels, student=outputs_of(logits)))[0]
        regularised = regularisation_loss(logits, virtual_teacher(labels, 10, 0.99, logits), 20.0)
    assert smoothed.dtype == regularised.dtype == torch.float32
    torch.testing.assert_close(smoothed, F.cross_entropy(logits.float(), labels, label_smoothing=0.1))
    teacher = virtual_teacher(labels, 10, 0.99, logits.float())
    assert torch.equal(regularised, regularisation_loss(logits.float(), teacher, 20.0))


def test_alpha_shares_between_labels_and_teacher() -> None:
    case = Case("tfkd_self", "resnet18_setting")
    logits, labels = case.input("student_logits"), case.input("labels")
    outputs = {"student": outputs_of(logits), "teacher": outputs_of(case.input("teacher_logits"))}
    for cls in (TFKDReg, TFKDSelf):
        alone, _ = method_on(cls, logits, alpha=0).loss(stub_step(labels, **outputs))
        assert_close(alone, cross_entropy(logits, labels))
        assert method_on(cls, logits, alpha=0.25, multiplier=8).weights["ce"] == 0.75
        assert set(method_on(cls, logits, alpha=0.25, multiplier=8).weights.values()) == {0.75, 2.0}


@pytest.mark.parametrize(
    ("cls", "option"),
    [
        (LS, {"epsilon": 1.0}),
        (LS, {"epsilon": -0.1}),
        (LS, {"smoothed": "none"}),
        *[(cls, {"alpha": value}) for cls in (TFKDReg, TFKDSelf) for value in (-0.1, 1.1)],
        *[(cls, {"temperature": 0}) for cls in (TFKDReg, TFKDSelf)],
        *[(cls, {"multiplier": -1}) for cls in (TFKDReg, TFKDSelf)],
        *[(TFKDReg, {"correct_probability": value}) for value in (0, 1.1)],
    ],
)
def test_options_out_of_range_are_refused(cls: type[Method], option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.Options(**option)
