"""MOKD's heads, losses and schedules against the public ones, and our wiring against a plain computation."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.core.rng import generator
from benchmark.data.augmentation import TrainingSource
from benchmark.data.mixing import Mixture
from benchmark.method.contract import Step, UserError
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.training.dummies import random_images
from benchmark.training.inputs import recipe_for
from benchmark.training.job import run_until_done
from benchmark.training.learner import Learner
from methods.baseline import cross_entropy
from methods.mokd import (
    MOKD,
    Projections,
    Temperatures,
    cross_loss,
    dino_loss,
    local_crops,
    moved_centre,
    search_loss,
    self_loss,
    teacher_momentum,
    teacher_temperature,
)
from tests import engine
from tests.support import Case, TinyNetwork, assert_close, assert_gradient, leaf, stub_context, stub_step, tiny_network

SMALL: dict[str, Any] = {
    "prototypes": 6,
    "hidden": 5,
    "bottleneck": 4,
    "blocks": 1,
    "attention_heads": 2,
    "width": 4,
    "local_crops": 3,
}
BATCH, CROPS, EPOCHS = 4, 3, 6
LABELS = torch.tensor([2, 0, 1, 1])
PLAIN, SECOND = torch.randn(2, BATCH, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_dino_loss_gradient_and_centre_equal_the_public_ones_over_two_calls() -> None:
    case = Case("mokd", "dino_loss")
    centre = torch.zeros(24, dtype=torch.float64)
    for call, epoch in enumerate(case.get("hp", "call_epochs").tolist()):
        student, teacher = leaf(case.input(f"student_out_{call}")), leaf(case.input(f"teacher_out_{call}"))
        hot = float(case.get("hp", "warmup_teacher_temp")), float(case.get("hp", "teacher_temp"))
        temperature = teacher_temperature(epoch, int(case.get("hp", "warmup_epochs")), *hot)
        loss = dino_loss(student, teacher, centre, float(case.get("hp", "student_temp")), temperature)
        loss.backward()
        centre = moved_centre(centre, teacher, float(case.get("hp", "center_momentum")))
        assert_close(loss, case.expected(f"call{call}_loss"))
        assert_close(student.grad, case.expected(f"call{call}_grad_student_out"))
        assert teacher.grad is None
        assert_close(centre[None], case.expected(f"call{call}_center_after"))


def test_search_loss_and_gradient_equal_the_public_ones() -> None:
    case = Case("mokd", "search_loss")
    student, teacher = leaf(case.input("student")), leaf(case.input("teacher"))
    loss = search_loss(student, teacher, 0.1, teacher_temperature(1, 3, 0.04, 0.07))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_close(student.grad, case.expected("grad_student"))
    assert teacher.grad is None


def test_both_totals_and_their_gradients_equal_the_public_ones() -> None:
    case = Case("mokd", "total")
    scores = {
        name: leaf(case.input(name)) for name in ("s_cnn_m", "s_cnn_t", "s_vit_m", "s_vit_t", "t_vit_m", "t_cnn_m")
    }
    zero = torch.zeros(24, dtype=torch.float64)
    centres = Projections(zero, zero)
    epoch, hot = int(case.get("hp", "epoch")), (0.04, 0.07)
    of_vit = teacher_temperature(epoch, int(case.get("hp", "warm_vit")), *hot)
    of_cnn = teacher_temperature(epoch, int(case.get("hp", "warm_cnn")), *hot)
    for own, other, self_temperature, weight in (("cnn", "vit", of_cnn, "lamda_c"), ("vit", "cnn", of_vit, "lamda_t")):
        student = Projections(scores[f"s_{own}_m"], scores[f"s_{own}_t"])
        teacher = Projections(scores[f"t_{own}_m"], case.input(f"t_{own}_t"))
        others = Projections(scores[f"t_{other}_m"], case.input(f"t_{other}_t"))
        found = case.input(f"t_{other}_search_l")
        temperatures = Temperatures(student=0.1, own=self_temperature, cross=of_vit)
        of_self = self_loss(student, teacher, centres, temperatures)
        of_other = cross_loss(student, others, centres, found, temperatures)
        total = of_self + float(case.get("hp", weight)) * of_other
        total.backward()
        assert_close(of_self, case.expected(f"loss_{own}_m") + case.expected(f"loss_{own}_t"))
        assert_close(of_other, case.expected(f"loss_ct_{own}") + case.expected(f"loss_ct_search_{own}"))
        assert_close(total, case.expected(f"loss_{own}_total"))
        assert_gradient(case, f"s_{own}_m", student.mlp)
        assert_gradient(case, f"s_{own}_t", student.tokens)
    assert scores["t_vit_m"].grad is None
    assert scores["t_cnn_m"].grad is None


def test_schedules_equal_the_public_ones() -> None:
    case = Case("mokd", "schedules")
    steps = int(case.get("hp", "epochs")) * int(case.get("hp", "iters_per_epoch"))
    momenta = [teacher_momentum(0.996, step / steps) for step in range(steps)]
    assert_close(torch.tensor(momenta, dtype=torch.float64), case.expected("momentum_teacher"))
    temperatures = [teacher_temperature(epoch, 3, 0.04, 0.07) for epoch in range(10)]
    expected = Case("mokd", "dino_loss").expected("teacher_temp_schedule")
    assert_close(torch.tensor(temperatures, dtype=torch.float64), expected)


@given(st.integers(0, 8), st.integers(1, 8))
def test_a_teachers_temperature_reaches_its_end_however_short_the_warm_up(warmup: int, epochs: int) -> None:
    temperatures = [teacher_temperature(epoch, warmup, 0.04, 0.07) for epoch in range(max(epochs, warmup + 1))]
    assert temperatures == sorted(temperatures)
    assert temperatures[-1] == 0.07
    assert temperatures[0] == (0.04 if warmup else 0.07)


def test_warm_ups_are_shares_of_the_epochs_of_a_run() -> None:
    method = MOKD(stub_context(TinyNetwork.SHAPE), MOKD.Options(**SMALL))
    found = [method.temperatures(epoch, 10) for epoch in range(10)]
    own = [0.04, 0.0475, 0.055, 0.0625] + [0.07] * 6
    cross = [0.04, 0.055] + [0.07] * 8
    assert [one.own for one in found] == pytest.approx(own)
    assert [one.cross for one in found] == pytest.approx(cross)
    assert {one.student for one in found} == {0.1}


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.integers(0, 99))
def test_local_crops_are_windows_of_their_images(batch: int, count: int, side: int, more: int, seed: int) -> None:
    size = side + more
    images = torch.arange(batch * 3 * size * size).view(batch, 3, size, size)
    crops = local_crops(images, count, side, generator("test", seed))
    assert crops.shape == (count * batch, 3, side, side)
    for row, crop in enumerate(crops):
        image = row % batch
        place = int(crop[0, 0, 0]) - image * 3 * size * size
        top, left = divmod(place, size)
        assert torch.equal(crop, images[image, :, top : top + side, left : left + side])


def test_local_crops_lie_anywhere_in_the_image() -> None:
    images = torch.arange(9.0).view(1, 1, 3, 3)
    crops = local_crops(images, 200, 2, generator("test", "crops"))
    assert sorted({int(crop[0, 0, 0]) for crop in crops}) == [0, 1, 3, 4]


def test_a_local_crop_fills_at_least_one_place_of_the_last_map() -> None:
    def side(stage: int, image: int) -> int:
        shape = dataclasses.replace(TinyNetwork.SHAPE, stages=((5, stage, stage),))
        return MOKD(stub_context(shape), MOKD.Options(**SMALL)).crop_side(image)

    assert side(8, 32) == side(4, 32) == 14
    assert side(2, 32) == 16
    assert side(7, 224) == 96
    assert side(1, 8) == 8


def make_method(**changes: Any) -> MOKD:
    return MOKD(stub_context(TinyNetwork.SHAPE), MOKD.Options(**(SMALL | changes))).double()


def make_step(network: TinyNetwork, epoch: int = 0, mixture: Mixture | None = None) -> Step:
    views = {"plain": PLAIN + 0.1 * epoch, "second": SECOND}
    return stub_step(LABELS, epoch=epoch, epochs=EPOCHS, images=views.__getitem__, student=network, mixture=mixture)


class PlainComputation:
    """Our wiring for one network and the teacher of the other, a pair of views at a time."""

    def __init__(self, method: MOKD, student: TinyNetwork) -> None:
        self.networks = [copy.deepcopy(student), copy.deepcopy(method.peer)]
        self.heads = [copy.deepcopy(method.heads), copy.deepcopy(method.peer_heads)]
        self.slow = copy.deepcopy(list(zip(self.networks, self.heads, strict=True)))
        self.centres = [[torch.zeros(6, dtype=torch.float64)] * 2 for _ in range(2)]

    @staticmethod
    def cross_entropy(target: Tensor, scores: Tensor) -> Tensor:
        return torch.stack([-(target[row] * F.log_softmax(scores[row] / 0.1, 0)).sum() for row in range(BATCH)]).mean()

    def dino(self, views: Tensor, teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
        by_view, targets = views.split(BATCH), ((teacher - centre) / temperature).softmax(1).split(BATCH)
        pairs = [(g, v) for g in range(2) for v in range(2 + CROPS) if v != g]
        return torch.stack([self.cross_entropy(targets[g], by_view[v]) for g, v in pairs]).mean()

    def terms(self, step: Step) -> dict[str, Tensor]:
        whole = torch.cat((step.images("plain"), step.images("second")))
        local = local_crops(step.images("second"), CROPS, 2, step.generator("local crops"))
        own, cross = step_temperatures(step.epoch)
        logits, mlp, tokens, queries, slow = [], [], [], [], []
        for net, heads, (slow_net, slow_heads) in zip(self.networks, self.heads, self.slow, strict=True):
            outputs = [net(local), net(whole)][::-1]
            logits.append(outputs[0].logits[:BATCH])
            mlp.append(torch.cat([heads.mlp(one.pooled) for one in outputs]))
            tokens.append(torch.cat([heads.tokens(one.stages[-1]).scores for one in outputs]))
            embedded = heads.tokens.patch_embed(outputs[1].stages[-1])
            queries.append(embedded.mean((2, 3)).detach())
            with torch.no_grad():
                seen = slow_net(whole)
                slow.append((slow_heads.mlp(seen.pooled), slow_heads.tokens(seen.stages[-1]).scores, seen.stages[-1]))
        terms = {}
        for me, name in ((0, ""), (1, "peer_")):
            you = 1 - me
            of_self = [
                self.dino(views, slow[me][kind], self.centres[me][kind], own)
                for kind, views in enumerate((mlp[me], tokens[me]))
            ]
            searched = []
            for crop in range(CROPS):
                rows = slice(crop * BATCH, (crop + 1) * BATCH)
                with torch.no_grad():
                    found = self.slow[you][1].tokens(slow[you][2][:BATCH], queries[me][rows]).scores
                views = tokens[me][(2 + crop) * BATCH : (3 + crop) * BATCH]
                searched.append(self.cross_entropy((found / cross).softmax(1), views))
            terms[f"{name}ce"] = cross_entropy(logits[me], step.labels)
            terms[f"{name}self"] = of_self[0] + of_self[1]
            terms[f"{name}cross"] = (
                self.dino(mlp[me], slow[you][0], self.centres[you][0], cross) + torch.stack(searched).mean()
            )
        for me in range(2):
            pairs = zip(self.centres[me], slow[me][:2], strict=True)
            self.centres[me] = [0.9 * centre + 0.1 * rows.mean(0) for centre, rows in pairs]
        return terms

    def follow(self, progress: float) -> None:
        kept = teacher_momentum(0.996, progress)
        for fast, slow in zip(zip(self.networks, self.heads, strict=True), self.slow, strict=True):
            for module, slow_module in zip(fast, slow, strict=True):
                for one, other in zip(module.parameters(), slow_module.parameters(), strict=True):
                    other.data = kept * other.data + (1 - kept) * one.data


def step_temperatures(epoch: int) -> tuple[float, float]:
    """Of a network's own teacher and the other's, with warm-ups of 3 and 2 of the 6 epochs."""
    return [0.04, 0.055, 0.07, 0.07][epoch], [0.04, 0.07, 0.07, 0.07][epoch]


def test_training_equals_a_plain_computation_over_four_epochs() -> None:
    network, method = tiny_network("fresh"), make_method(token_rate=1.0, peer_cross_weight=0.3, cross_weight=0.7)
    plain = PlainComputation(method, network)
    ours = [*network.parameters(), *(one for one in method.parameters() if one.requires_grad)]
    modules = (plain.networks[0], plain.networks[1], plain.heads[0], plain.heads[1])
    theirs = [one for module in modules for one in module.parameters() if one.requires_grad]
    optimizers = torch.optim.SGD(ours, 0.05), torch.optim.SGD(theirs, 0.05)
    for epoch in range(4):
        loss, terms = method.train().loss(make_step(network, epoch))
        expected = plain.terms(make_step(network, epoch))
        assert terms.keys() == expected.keys()
        for name, term in terms.items():
            assert_close(term, expected[name])
        weights = {"ce": 1.0, "peer_ce": 1.0, "self": 1.0, "peer_self": 1.0, "cross": 0.7, "peer_cross": 0.3}
        second_loss = sum(weights[name] * term for name, term in expected.items())
        assert_close(loss, second_loss)
        for optimizer, value in zip(optimizers, (loss, second_loss), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        method.end_step(network)
        plain.follow(epoch / EPOCHS)
        for teacher, (slow_network, slow_heads), centres in zip(
            (method.teacher, method.peer_teacher), plain.slow, plain.centres, strict=True
        ):
            for one, other in ((teacher.network, slow_network), (teacher.heads, slow_heads)):
                for parameter, second in zip(one.parameters(), other.parameters(), strict=True):
                    assert_close(parameter, second)
            assert_close(teacher.centre_mlp, centres[0])
            assert_close(teacher.centre_tokens, centres[1])


def test_teachers_start_equal_take_no_gradient_and_normalise_by_the_batch() -> None:
    network, method = tiny_network("fresh"), make_method().train()
    pairs = ((method.teacher, network, method.heads), (method.peer_teacher, method.peer, method.peer_heads))
    for teacher, fast, heads in pairs:
        for slow, other in ((teacher.network, fast), (teacher.heads, heads)):
            for one, two in zip(slow.parameters(), other.parameters(), strict=True):
                assert torch.equal(one, two)
                assert one is not two
                assert not one.requires_grad
        assert all(module.training for module in teacher.modules())
    method.loss(make_step(network))[0].backward()
    for part in (network, method.peer, method.heads, method.peer_heads):
        for parameter in part.parameters():
            assert not parameter.requires_grad or parameter.grad.abs().sum() > 0
    assert all(parameter.grad is None for teacher, _, _ in pairs for parameter in teacher.parameters())


def test_peer_and_its_heads_have_first_weights_of_their_own() -> None:
    method = make_method()
    fresh = tiny_network("fresh")
    assert not torch.equal(method.peer.stem.weight, fresh.stem.weight)
    for own, other in zip(method.heads.named_parameters(), method.peer_heads.parameters(), strict=True):
        name, values = own
        drawn = "weight" in name and "norm" not in name and "weight_g" not in name
        assert torch.equal(values, other) != (drawn or name in ("tokens.pos_embed", "tokens.patch_embed.bias"))


def test_t_heads_learn_at_their_share_of_the_rate_wherever_the_method_is_moved() -> None:
    gradients = []
    for rate in (1.0, 0.25):
        method, network = make_method(token_rate=rate), tiny_network()
        method.loss(make_step(network))[0].backward()
        gradients.append([network.stem.weight.grad, method.heads.mlp.mlp[0].weight.grad])
        gradients[-1] += [one.grad for heads in (method.heads, method.peer_heads) for one in heads.tokens.parameters()]
    full, quarter = gradients
    for place, (one, other) in enumerate(zip(full, quarter, strict=True)):
        assert torch.equal(other, one if place < 2 else one * 0.25)


def test_labels_of_a_mixture_count_by_their_shares_for_both_networks() -> None:
    network, method = tiny_network(), make_method()
    of_partner = torch.tensor([1, 2, 0, 0])
    mixed = method(make_step(network, mixture=Mixture(of_partner, torch.arange(4), 0.3)))
    fresh = make_method()
    plain = fresh(make_step(network))
    partners = make_method()(dataclasses.replace(make_step(network), labels=of_partner))
    for name in ("ce", "peer_ce"):
        assert_close(mixed[name], 0.3 * plain[name] + 0.7 * partners[name])
        assert abs(plain[name] - partners[name]) > 1e-3
    for name in ("self", "cross", "peer_self", "peer_cross"):
        assert torch.equal(mixed[name], plain[name])


def test_a_resumed_run_gives_the_same_bits_as_one_that_was_not(tmp_path: Path) -> None:
    run, beside = engine.run_of("MOKD", options={"MOKD": SMALL}), engine.run_of("Baseline")
    assert run.teacher is None
    alone, resumed = engine.settings(tmp_path / "alone"), engine.settings(tmp_path / "resumed")
    assert run_until_done([run], alone)
    asked = iter([False] * 12 + [True])
    assert not run_until_done([beside, run], resumed, stop=lambda: next(asked))
    assert run_until_done([beside, run], resumed)
    first, second = Store(alone.runs).record(run), Store(resumed.runs).record(run)
    assert first is not None
    assert second is not None
    assert second["provenance"]["resumed"] == 1
    assert first["status"] == "finished"
    assert comparable_part(first) == comparable_part(second)


def test_cost_counts_both_networks_their_crops_and_their_teachers() -> None:
    options = MOKD.Options()
    of_one = 2 + options.local_crops * options.local_size**2 + 2 / 3
    assert MOKD.student_passes == pytest.approx(2 * of_one)


def test_attention_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="6 attention heads do not divide a width of 64; choose width as a multiple"):
        MOKD(stub_context(TinyNetwork.SHAPE), MOKD.Options(width=64))


@pytest.mark.parametrize(
    "option",
    [
        {"local_crops": 0},
        {"local_size": 1.1},
        {"prototypes": 1},
        {"teacher_momentum": 1.5},
        {"self_warmup": 2},
        {"token_rate": 0},
        {"student_temperature": 0},
        {"sinkhorn": True},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MOKD.Options(**option)


def test_norms_gather_the_statistics_of_whole_images_alone() -> None:
    """One step of the real engine: a forward over both global views, and none of the crops' statistics."""
    run = engine.run_of("MOKD", options={"MOKD": SMALL})
    images = random_images(16, 8)
    labels = images.train.labels
    learner = Learner(run, 100, 8, labels, 1, torch.device("cpu"))
    source = TrainingSource(images.train, recipe_for(run.protocol, images), 8, "cpu", ("test",))
    learner.step(source.batch(source.epoch(0), 0), None, 0, 0)
    for network in (learner.student, learner.method.peer):
        counts = {int(norm.num_batches_tracked) for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)}
        assert counts == {1}
