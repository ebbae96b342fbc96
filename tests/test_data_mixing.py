"""Cutout and CutMix do what their papers define, in every view, and leave all else of a batch as it was.

The definitions are written here once more, as loops over images and pixels. What was drawn for a batch is read off
pictures: where every image has a colour of its own, a mixed batch shows its box and its partners.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.core.protocols import PROTOCOLS
from benchmark.core.rng import generator
from benchmark.core.spec import Augmentation
from benchmark.data import load_dataset
from benchmark.data.augmentation import Batch, Recipe, RotatedCrop, TrainingSource, View
from benchmark.data.dataset import ImageSet
from benchmark.data.mixing import sample_mix
from benchmark.training.inputs import recipe_for

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
VIEWS: tuple[View, ...] = ("plain", "rotated", "second", "same_class")
CPU = torch.device("cpu")
Pictures = np.ndarray


def random_images(count: int, size: int, seed: int = 0) -> ImageSet:
    stream = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=stream)
    return ImageSet(pixels, torch.arange(count) % 3)


def coloured_images(count: int, size: int) -> ImageSet:
    """Images of one colour each, which is their position."""
    assert count <= 256
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, size, size, 3)
    return ImageSet(pixels.contiguous(), torch.arange(count) % 3)


def source_of(
    images: ImageSet,
    batch_size: int,
    cutout: int = 0,
    cutmix: float = 0.0,
    padding: int = 1,
    flip: bool = True,
    rotated_crop: RotatedCrop = "shared",
    name: str | int = "test",
) -> TrainingSource:
    recipe = Recipe(padding, flip, MEAN, STD, rotated_crop, cutout, cutmix)
    return TrainingSource(images, recipe, batch_size, "cpu", (name,))


def shown_in(batch: Batch, view: View) -> Pictures:
    return batch.view(view).numpy()


def origins(count: int, size: int, batch_size: int, cutmix: float, name: str | int, epoch: int, step: int) -> Pictures:
    """The position of the image that each pixel of a batch's plain view comes from: [batch, size, size]."""
    recipe = Recipe(0, False, (0.0,) * 3, (1.0,) * 3, cutmix=cutmix)
    source = TrainingSource(coloured_images(count, size), recipe, batch_size, "cpu", (name,))
    plain = source.batch(source.epoch(epoch), step).view("plain")
    return (plain[:, 0] * 255).round().long().numpy()


def with_holes(images: Pictures, centres: Pictures, side: int) -> Pictures:
    """Cutout by its definition: a square of zeros around a centre, as far as it lies in the image."""
    result = images.copy()
    for image, (row, column) in zip(result, centres, strict=True):
        for y in range(row - side // 2, row - side // 2 + side):
            for x in range(column - side // 2, column - side // 2 + side):
                if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                    image[:, y, x] = 0.0
    return result


def turned_by_hand(image: Pictures, turns: int) -> Pictures:
    """An image [channels, size, size] (or a mask [size, size]), turned counter-clockwise."""
    return np.rot90(image, turns, axes=(-2, -1))


def boxes_by_definition(size: int) -> dict[tuple[int, int, int, int], Fraction]:
    """How likely each box (top, bottom, left, right) of CutMix is, for lambda ~ Beta(1, 1) and a uniform centre.

    The side is int(size * sqrt(1 - lambda)), and 1 - lambda is uniform: it is s with chance ((s + 1)^2 - s^2) / size^2.
    """
    chances: dict[tuple[int, int, int, int], Fraction] = {}
    for side, row, column in itertools.product(range(size), range(size), range(size)):
        half = side // 2
        top, bottom = max(row - half, 0), min(row + half, size)
        left, right = max(column - half, 0), min(column + half, size)
        box = (top, bottom, left, right) if bottom > top and right > left else (0, 0, 0, 0)
        chances[box] = chances.get(box, Fraction(0)) + Fraction(2 * side + 1, size**4)
    assert sum(chances.values()) == 1
    return chances


def corners(box: Pictures) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box [size, size] of truth values, which must be a filled rectangle."""
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    if not len(rows):
        return (0, 0, 0, 0)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert box[top:bottom, left:right].all()
    return int(top), int(bottom), int(left), int(right)


def assert_follows(counts: list[int], expected: list[float]) -> None:
    """Counts are as expected, up to six standard deviations of chi-square."""
    assert sum(counts) == pytest.approx(sum(expected))
    freedom = len(counts) - 1
    distance = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    assert distance < freedom + 6 * math.sqrt(2 * freedom)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 9),
    side=st.integers(1, 11),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    rotated_crop=st.sampled_from(["shared", "per_rotation"]),
    seed=st.integers(0, 2**16),
)
def test_cutout_is_a_square_of_zeros_around_its_centre_in_every_view(
    size: int, side: int, padding: int, flip: bool, rotated_crop: RotatedCrop, seed: int
) -> None:
    images = random_images(6, size, seed)
    plain, cut = (source_of(images, 4, cutout, 0.0, padding, flip, rotated_crop, name=seed) for cutout in (0, side))
    plan = cut.epoch(1)
    whole, holed = plain.batch(plain.epoch(1), 0), cut.batch(plan, 0)
    for view in ("plain", "second", "same_class"):
        centres = cut.holes(plan, view, holed.index).numpy()
        assert ((centres >= 0) & (centres < size)).all()
        assert np.array_equal(shown_in(holed, view), with_holes(shown_in(whole, view), centres, side)), view
    centres = cut.holes(plan, "plain", holed.index).numpy()
    for turns in range(4):
        back = np.stack([turned_by_hand(image, -turns) for image in shown_in(whole, "rotated")[turns::4]])
        expected = [turned_by_hand(image, turns) for image in with_holes(back, centres, side)]
        assert np.array_equal(shown_in(holed, "rotated")[turns::4], np.stack(expected)), f"turned by {90 * turns}"
    assert torch.equal(holed.view("rotated")[::4], holed.view("plain"))


def test_the_centre_of_a_hole_is_any_pixel_with_the_same_chance() -> None:
    size, count = 4, 4000
    source = source_of(random_images(count, size), 64, cutout=2)
    plan = source.epoch(0)
    for view in ("plain", "second", "same_class"):
        centres = source.holes(plan, view, torch.arange(count))
        counts = torch.bincount(centres[:, 0] * size + centres[:, 1], minlength=size**2)
        assert_follows(counts.tolist(), [count / size**2] * size**2)


def test_holes_are_by_image_and_new_in_every_epoch_and_view() -> None:
    images = random_images(40, 8)
    small, large = source_of(images, 4, cutout=2), source_of(images, 16, cutout=2)
    everyone = torch.arange(40)
    first = small.holes(small.epoch(0), "plain", everyone)
    assert torch.equal(first, large.holes(large.epoch(0), "plain", everyone))
    assert torch.equal(first, small.holes(small.epoch(0), "rotated", everyone))
    assert torch.equal(first[7:9], small.holes(small.epoch(0), "plain", torch.tensor([7, 8])))
    others = [small.holes(small.epoch(0), view, everyone) for view in ("second", "same_class")]
    others += [small.holes(small.epoch(1), "plain", everyone)]
    others += [source_of(images, 4, cutout=2, name="other").holes(small.epoch(0), "plain", everyone)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations([first, *others], 2))


def test_a_mixed_box_is_as_likely_as_the_definition_says() -> None:
    size, draws = 4, 6000
    chances = boxes_by_definition(size)
    counts = dict.fromkeys(chances, 0)
    for number in range(draws):
        mix = sample_mix(2, size, 1.0, generator("test", number), CPU)
        assert mix is not None
        box = mix.box.numpy()
        assert mix.share == pytest.approx(1 - box.mean(), abs=1e-12)
        counts[corners(box)] += 1
    assert_follows(list(counts.values()), [draws * float(chance) for chance in chances.values()])


def test_a_box_of_a_large_image_lies_around_its_centre_and_reaches_every_edge() -> None:
    size = 32
    possible = boxes_by_definition(size)
    mixes = [sample_mix(2, size, 1.0, generator("test", number), CPU) for number in range(300)]
    found = [corners(mix.box.numpy()) for mix in mixes if mix is not None]
    assert set(found) <= set(possible)
    assert min(box[0] for box in found) == min(box[2] for box in found) == 0
    assert max(box[1] for box in found) == max(box[3] for box in found) == size


def test_partners_are_a_permutation_and_each_is_as_likely() -> None:
    orders = list(itertools.permutations(range(3)))
    counts = dict.fromkeys(orders, 0)
    for number in range(1200):
        mix = sample_mix(3, 4, 1.0, generator("test", number), CPU)
        assert mix is not None
        first, second, third = mix.partner.tolist()
        counts[first, second, third] += 1
    assert_follows(list(counts.values()), [200.0] * 6)


def test_half_of_the_batches_are_mixed() -> None:
    assert all(sample_mix(4, 8, 0.0, generator("test", number), CPU) is None for number in range(50))
    source = source_of(random_images(40, 4), 4, cutmix=recipe_of("cutmix").cutmix)
    batches = [source.batch(plan, step) for plan in map(source.epoch, range(40)) for step in range(10)]
    # 200 are expected; six standard deviations (10) are left on both sides.
    assert 140 < sum(batch.mixture is not None for batch in batches) < 260


def recipe_of(augmentation: Augmentation) -> Recipe:
    return recipe_for(PROTOCOLS["lsskd"], load_dataset("digits"), augmentation)


def test_a_quarter_of_the_side_is_cut_out_and_only_what_was_asked_for() -> None:
    recipes = {name: recipe_of(name) for name in get_args(Augmentation)}
    values = {name: (recipe.cutout, recipe.cutmix) for name, recipe in recipes.items()}
    expected = {"standard": (0, 0.0), "cutout": (2, 0.0), "cutmix": (0, 0.5), "cutout+cutmix": (2, 0.5)}
    assert values == expected


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 9),
    batch_size=st.integers(2, 6),
    cutout=st.integers(0, 4),
    cutmix=st.sampled_from([0.5, 1.0]),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    rotated_crop=st.sampled_from(["shared", "per_rotation"]),
    seed=st.integers(0, 2**16),
)
def test_every_view_of_a_mixed_batch_is_mixed_by_the_definition(
    size: int,
    batch_size: int,
    cutout: int,
    cutmix: float,
    padding: int,
    flip: bool,
    rotated_crop: RotatedCrop,
    seed: int,
) -> None:
    images = random_images(6, size, seed)
    whole, mixed = (
        source_of(images, batch_size, cutout, share, padding, flip, rotated_crop, name=seed) for share in (0.0, cutmix)
    )
    unmixed, batch = whole.batch(whole.epoch(2), 0), mixed.batch(mixed.epoch(2), 0)
    if batch.mixture is None:
        assert cutmix < 1
        assert all(torch.equal(batch.view(view), unmixed.view(view)) for view in VIEWS)
        return
    index, partners = batch.index.tolist(), batch.mixture.index.tolist()
    assert sorted(partners) == sorted(index)
    assert torch.equal(batch.mixture.labels, images.labels[batch.mixture.index])
    rows = [index.index(partner) for partner in partners]
    box = np.zeros((size, size), dtype=bool)
    from_where = origins(6, size, batch_size, cutmix, seed, 2, 0)
    for row, (own, partner) in enumerate(zip(index, partners, strict=True)):
        if own != partner:
            box = from_where[row] == partner
            assert ((from_where[row] == own) | box).all()
            assert batch.mixture.share == pytest.approx(1 - box.mean(), abs=1e-12)
    for view in VIEWS:
        turns = 4 if view == "rotated" else 1
        before, after = shown_in(unmixed, view), shown_in(batch, view)
        for row, turn in itertools.product(range(len(index)), range(turns)):
            own, partner = before[turns * row + turn], before[turns * rows[row] + turn]
            expected = np.where(turned_by_hand(box, turn), partner, own)
            assert np.array_equal(after[turns * row + turn], expected), (view, row, turn)


def test_the_share_is_that_of_the_pixels_that_are_still_the_image_s_own() -> None:
    shares = set()
    for step in range(10):
        whole, mixed = (source_of(random_images(40, 16), 4, cutmix=share) for share in (0.0, 1.0))
        batch, unmixed = mixed.batch(mixed.epoch(0), step), whole.batch(whole.epoch(0), step)
        assert batch.mixture is not None
        from_where = origins(40, 16, 4, 1.0, "test", 0, step)
        for row, (own, partner) in enumerate(zip(batch.index.tolist(), batch.mixture.index.tolist(), strict=True)):
            kept = (batch.view("plain")[row] == unmixed.view("plain")[row]).all(0).numpy()
            if own == partner:
                assert kept.all()
                continue
            assert kept[from_where[row] == own].all()
            assert batch.mixture.share == pytest.approx((from_where[row] == own).mean(), abs=1e-12)
            shares.add(batch.mixture.share)
    assert len(shares) > 5


def test_with_shared_crops_the_rotated_view_is_the_mixed_image_turned() -> None:
    source = source_of(random_images(20, 8), 8, cutout=3, cutmix=1.0, padding=2)
    batch = source.batch(source.epoch(0), 0)
    plain, rotated = shown_in(batch, "plain"), shown_in(batch, "rotated")
    for row, turn in itertools.product(range(8), range(4)):
        assert np.array_equal(rotated[4 * row + turn], turned_by_hand(plain[row], turn))


def test_with_crops_of_their_own_rotations_are_mixed_each_with_the_same_rotation_of_the_partner() -> None:
    """Each image has a colour, and each rotation shows another part of its frame of zeros."""
    images, count, size = coloured_images(8, 8), 8, 8
    own, shared = (
        source_of(images, count, cutmix=1.0, padding=3, rotated_crop=crop, name=3)
        for crop in ("per_rotation", "shared")
    )
    batch = own.batch(own.epoch(0), 0)
    assert batch.mixture is not None
    assert torch.equal(batch.mixture.index, shared.batch(shared.epoch(0), 0).mixture.index)
    from_where = origins(count, size, count, 1.0, 3, 0, 0)
    unmixed = source_of(images, count, padding=3, rotated_crop="per_rotation", name=3)
    before = shown_in(unmixed.batch(unmixed.epoch(0), 0), "rotated")
    after = shown_in(batch, "rotated")
    index = batch.index.tolist()
    differ = 0
    for row, turn in itertools.product(range(count), range(4)):
        origin = turned_by_hand(from_where[row], turn)
        for y, x in itertools.product(range(size), range(size)):
            seen = before[4 * index.index(origin[y, x]) + turn]
            assert np.array_equal(after[4 * row + turn, :, y, x], seen[:, y, x])
        differ += not np.array_equal(before[4 * row + turn], turned_by_hand(before[4 * row], turn))
    assert differ > count, "the crops of the rotations should differ"


@pytest.mark.parametrize("rotated_crop", ["shared", "per_rotation"])
@pytest.mark.parametrize(("cutout", "cutmix"), [(2, 0.0), (0, 1.0), (2, 1.0)])
def test_views_do_not_depend_on_the_order_in_which_they_are_asked_for(
    cutout: int, cutmix: float, rotated_crop: RotatedCrop
) -> None:
    def views(order: tuple[View, ...]) -> dict[View, torch.Tensor]:
        source = source_of(random_images(20, 8), 8, cutout, cutmix, rotated_crop=rotated_crop)
        batch = source.batch(source.epoch(0), 1)
        return {view: batch.view(view) for view in order}

    forward, backward = views(VIEWS), views(VIEWS[::-1])
    assert all(torch.equal(forward[view], backward[view]) for view in VIEWS)
    assert torch.equal(forward["rotated"][::4], forward["plain"])
    for view in VIEWS:
        assert forward[view].is_contiguous(memory_format=torch.channels_last), view
        assert forward[view].dtype == torch.float32


@pytest.mark.parametrize("rotated_crop", ["shared", "per_rotation"])
def test_cutout_and_cutmix_move_no_order_crop_or_flip(rotated_crop: RotatedCrop) -> None:
    images = random_images(50, 8)
    standard = source_of(images, 8, rotated_crop=rotated_crop).epoch(4)
    for cutout, cutmix in ((2, 0.0), (0, 0.5), (2, 1.0)):
        source = source_of(images, 8, cutout, cutmix, rotated_crop=rotated_crop)
        plan = source.epoch(4)
        for step in range(source.batches):
            batch = source.batch(plan, step)
            assert torch.equal(batch.index, standard.order[8 * step : 8 * step + 8])
            assert torch.equal(batch.labels, images.labels[batch.index])
            for view in VIEWS:
                batch.view(view)
        assert torch.equal(plan.order, standard.order)
        assert torch.equal(plan.offsets, standard.offsets)
        assert torch.equal(plan.flips, standard.flips)


def test_a_mix_depends_on_names_epoch_and_step_alone() -> None:
    def rows_box_share(
        name: str = "a", epoch: int = 1, step: int = 2, warm: bool = False, pixels: int = 0
    ) -> tuple[list[int], list[bool], float]:
        source = source_of(random_images(64, 8, pixels), 16, cutmix=1.0, name=name)
        if warm:
            for earlier in range(2):
                source.batch(source.epoch(0), earlier).view("rotated")
        batch = source.batch(source.epoch(epoch), step)
        assert batch.mixture is not None
        # Rows, because other epochs and names visit other positions.
        rows = [batch.index.tolist().index(position) for position in batch.mixture.index.tolist()]
        box = origins(64, 8, 16, 1.0, name, epoch, step)[0] == int(batch.mixture.index[0])
        return rows, box.flatten().tolist(), batch.mixture.share

    first = rows_box_share()
    assert rows_box_share(warm=True) == rows_box_share(pixels=1) == first
    for other in (rows_box_share(name="b"), rows_box_share(epoch=2), rows_box_share(step=3)):
        assert other[0] != first[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rotated_crop", ["shared", "per_rotation"])
def test_a_gpu_mixes_and_cuts_the_same_bits(rotated_crop: RotatedCrop) -> None:
    recipe = Recipe(4, True, MEAN, STD, rotated_crop, cutout=8, cutmix=1.0)
    here, there = (TrainingSource(random_images(64, 32), recipe, 32, device, ("test",)) for device in ("cpu", "cuda"))
    on_cpu, on_gpu = (source.batch(source.epoch(0), 1) for source in (here, there))
    assert on_cpu.mixture is not None
    assert on_gpu.mixture is not None
    assert on_gpu.mixture.share == on_cpu.mixture.share
    assert torch.equal(on_gpu.mixture.index.cpu(), on_cpu.mixture.index)
    for view in VIEWS:
        assert torch.equal(on_gpu.view(view).cpu(), on_cpu.view(view)), view
