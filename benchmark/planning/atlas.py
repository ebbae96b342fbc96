"""What teachers' atlases cost and save, before anything is trained; and what can have none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmark.core.errors import UserError
from benchmark.core.protocols import PROTOCOLS
from benchmark.core.spec import Augmentation, Protocol, Run
from benchmark.core.text import counted
from benchmark.data import imagenet, stl10, tiny_imagenet
from benchmark.data.dataset import Dataset
from benchmark.data.views import count_views
from benchmark.planning import cost, timed
from benchmark.plugins.registry import method_class
from benchmark.results.store import Store
from benchmark.training.atlas import Atlas
from benchmark.training.evaluation import BATCH_SIZE
from benchmark.training.inputs import recipe_for

OPTION = "--teacher-outputs atlas"
SHOWN_AS_BOXES = (imagenet.NAME, stl10.NAME, tiny_imagenet.SMALL_NAME)
"""The datasets whose images are trained on as random boxes; all others are cropped after padding."""


def check_views(dataset: str, protocol: Protocol, augmentation: Augmentation) -> None:
    """Refuse images of which an atlas cannot have every view.

    Raises:
        UserError: crops are random boxes (ImageNet), images are mixed or have holes, or each rotation has its own crop.
    """
    if dataset in SHOWN_AS_BOXES:
        raise UserError(f"{OPTION}: crops of {dataset} are random boxes, of which there is no list; leave it out")
    if augmentation != "standard":
        raise UserError(f"{OPTION}: {augmentation} makes views that no atlas has; leave out --augment or {OPTION}")
    if protocol.rotated_crop != "shared":
        allowed = [name for name, each in PROTOCOLS.items() if each.rotated_crop == "shared" and name != imagenet.NAME]
        raise UserError(
            f"{OPTION}: in protocol {protocol.name} each rotation has its own crop, which an atlas does not have; "
            f"choose --protocol from {', '.join(allowed)}, or leave it out"
        )


def check_readers(runs: Iterable[Run]) -> None:
    """Refuse a request for an atlas that no run reads, and rows that would read one but for their augmentation.

    Raises:
        UserError: it would change nothing, or a row has an augmentation of its own.
    """
    runs = list(runs)
    for run in runs:
        if run.augmentation != "standard" and run.teacher is not None:
            raise UserError(
                f"{OPTION}: {run.method} is trained with {run.augmentation}, whose views no atlas has; "
                "choose other rows with --methods, or leave it out"
            )
    if not any(run.teacher_outputs == "atlas" for run in runs):
        raise UserError(
            f"{OPTION} changes nothing: no method of this command needs only its teacher's logits of the plain view; "
            "choose one that does with --methods, such as KD or DKD, or leave it out"
        )


@dataclass
class AtlasPrice:
    """What the atlases of some jobs cost and save.

    views: of an image; runs: that read one; atlases: how many; size: in bytes, of all; made: passes of teachers over
    the images that make what is missing; left: passes that the jobs' other methods need all the same; without: passes
    without an atlas (all passes are of the plain view); images: shown to make what is missing; multiply_adds, seconds
    (on one core), gpu_seconds: of making.
    """

    views: int
    runs: int = 0
    atlases: int = 0
    size: int = 0
    made: int = 0
    left: int = 0
    without: int = 0
    images: int = 0
    multiply_adds: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0

    def describe(self) -> list[str]:
        """Describe the price in two lines."""
        some = f"{self.atlases} {'atlas' if self.atlases == 1 else 'atlases'}"
        passes = self.made + self.left
        verdict = "" if passes < self.without else ": more than it saves here"
        return [
            f"Teachers' atlases: {counted(self.runs, 'run')} read {some} of {self.views} views, "
            f"{self.size / 1e9:.2f} GB.",
            f"Passes of teachers over the training images: {passes:,} ({self.made:,} of them, with "
            f"{self.multiply_adds:.2e} multiply-adds, to make atlases) instead of {self.without:,}{verdict}.",
        ]


def price_atlases(jobs: Iterable[Sequence[Run]], images: Dataset, store: Store) -> AtlasPrice | None:
    """Price the atlases that the runs of some jobs read; None if none reads any. images: that all train on."""
    price = AtlasPrice(count_views(images.padding, images.flip))
    readers: dict[tuple[object, ...], Run] = {}
    for runs in jobs:
        reading = [run for run in runs if run.teacher_outputs == "atlas"]
        if not reading:
            continue
        live = [run for run in runs if cost.live_teacher(run) and method_class(run.method).view == "plain"]
        price.runs += len(reading)
        price.left += max((run.schedule.epochs for run in live), default=0)
        price.without += max(run.schedule.epochs for run in (*reading, *live))
        for run in reading:
            share = (run.fraction, run.fraction_seed, run.validation, run.validation_seed)
            readers[run.teacher, run.teacher_precision, *share] = run
    price.atlases = len(readers)
    for run in readers.values():
        passes = _count_missing(run, images, store)
        own = round(run.fraction * (1 - run.validation) * len(images.train.labels))
        assert run.teacher_network is not None
        forward = cost.network_cost(run.teacher_network, False, images.image_size)
        multiply_adds = passes * own * forward.multiply_adds
        convolutions = passes * -(-own // BATCH_SIZE) * forward.convolutions
        price.size += price.views * own * images.num_classes * 2
        price.made += passes
        price.images += passes * own
        price.multiply_adds += multiply_adds
        price.seconds += multiply_adds / cost.MULTIPLY_ADDS_PER_SECOND + convolutions * cost.SECONDS_PER_CONVOLUTION
        price.gpu_seconds += (
            multiply_adds / timed.MULTIPLY_ADDS_PER_SECOND + convolutions * timed.SECONDS_PER_CONVOLUTION
        )
    return price if readers else None


def _count_missing(run: Run, images: Dataset, store: Store) -> int:
    """Count the views that an atlas lacks: all of them where its teacher is not trained yet."""
    try:
        recipe = recipe_for(run.protocol, images)
        return len(Atlas.of(run, recipe, 0, images.num_classes, store).list_missing())
    except UserError:
        return count_views(images.padding, images.flip)
