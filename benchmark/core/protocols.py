"""The named protocols and scales. Where the values come from is told in docs/protocols.md."""

from __future__ import annotations

from benchmark.core.errors import UserError, unknown_name
from benchmark.core.spec import LRSchedule, Protocol, Scale

CIFAR_SCHEDULE = LRSchedule(epochs=240, milestones=(150, 180, 210))
STAGE_SCHEDULES = {
    "AB-init": LRSchedule(epochs=30),
    "SSKD-head": LRSchedule(epochs=60, milestones=(30, 45)),
    "HSSAKD-branches": LRSchedule(epochs=100, milestones=(30, 60, 90)),
}
IMAGENET_STAGE_SCHEDULES = {
    **{name: schedule.scaled(100 / 240) for name, schedule in STAGE_SCHEDULES.items()},
    "HSSAKD-branches": LRSchedule(epochs=100, milestones=(30, 60, 90)),
}
"""HSAKD's own for its branches; the others have as large a share of the main schedule as they have of 240 epochs."""
AS_ALONE = {name: {"kd_weight": 0.0} for name in ("FitNet", "AT", "AB", "VID", "RKD", "SP", "CC", "CRD", "PKT", "NST")}
"""RepDistiller's rows are without conventional KD; SemCKD's own results are with it."""
WITHOUT_TABLE = {
    name: {"past": "previous_weights"}
    for name in (
        "PS-KD",
        "LSSKD",
        "LSSKD-hard",
        "LSSKD-no-kl",
        "LSSKD-no-feature",
        "LSSKD-head-only",
        "LSSKD-1-branch",
        "LSSKD-2-branches",
    )
}
"""A table of what was said of 1.28 million images takes 2.6 GB for PS-KD and 167 GB for LSSKD."""
AT_TEMPERATURE_1 = {"NKD": {"temperature": 1.0, "others_weight": 1.5}, "DIST": {"temperature": 1.0}}
"""The authors' settings for ImageNet."""
OFF_TARGET = {"LS": {"smoothed": "others"}}
"""Label smoothing as Tf-KD has it."""

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            # The LSSKD paper: rate divided after epochs 150 and 210 only, 0.05 for every network.
            name="lsskd",
            schedule=LRSchedule(epochs=240, milestones=(150, 210)),
            learning_rate=0.05,
            method_schedules=STAGE_SCHEDULES,
        ),
        Protocol(
            name="crd",
            schedule=CIFAR_SCHEDULE,
            learning_rate=0.05,
            mobile_learning_rate=0.01,
            method_schedules=STAGE_SCHEDULES,
            method_options=AS_ALONE,
        ),
        Protocol(
            name="sskd",
            schedule=CIFAR_SCHEDULE,
            learning_rate=0.05,
            mobile_learning_rate=0.01,
            rotated_crop="per_rotation",
            mean=(0.5071, 0.4866, 0.4409),
            std=(0.2675, 0.2565, 0.2761),
            method_schedules=STAGE_SCHEDULES,
        ),
        Protocol(
            name="hsakd",
            schedule=CIFAR_SCHEDULE,
            learning_rate=0.05,
            mobile_learning_rate=0.01,
            nesterov=True,
            method_schedules=STAGE_SCHEDULES,
        ),
        Protocol(
            name="pskd",
            schedule=LRSchedule(epochs=300, milestones=(150, 225)),
            learning_rate=0.1,
            batch_size=128,
            nesterov=True,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
            method_schedules=STAGE_SCHEDULES,
        ),
        Protocol(
            # TF-KD also rotates each image by up to 15 degrees, which is left out (a report says so).
            name="tfkd",
            schedule=LRSchedule(epochs=200, milestones=(60, 120, 160)),
            learning_rate=0.1,
            decay=0.2,
            warmup_epochs=1,
            batch_size=128,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            method_schedules=STAGE_SCHEDULES,
            method_options=OFF_TARGET,
        ),
        Protocol(
            # HSAKD's for ImageNet, without the Nesterov momentum of its CIFAR recipe.
            name="imagenet",
            schedule=LRSchedule(epochs=100, milestones=(30, 60, 90)),
            learning_rate=0.1,
            batch_size=256,
            weight_decay=1e-4,
            method_schedules=IMAGENET_STAGE_SCHEDULES,
            method_options=WITHOUT_TABLE | AT_TEMPERATURE_1,
        ),
    )
}

PROBES = {
    protocol.name: protocol
    for protocol in (
        # The suite's own: a single fit to the features, without rates.
        Protocol(name="probe-lbfgs", schedule=LRSchedule(epochs=1), learning_rate=0.1, weight_decay=0.0),
        Protocol(
            # The linear evaluation of HSAKD's authors.
            name="probe-sgd",
            schedule=LRSchedule(epochs=100, milestones=(30, 60, 90)),
            learning_rate=0.1,
            weight_decay=0.0,
            nesterov=True,
            method_options={"Probe": {"solver": "sgd"}},
        ),
    )
}
"""How a new classifier learns on a trained student's features; no table of students is trained by these."""

SCALES = {
    scale.name: scale
    for scale in (
        Scale(name="demo", factor=1 / 60, learning_rate_factor=0.4, warmup_epochs=2, batch_factor=0.5),
        Scale(name="quick", factor=1 / 20),
        Scale(name="paper", factor=1),
    )
}


SEEDS = {"demo": 1, "quick": 1, "paper": 3}
"""Runs of a cell, if nobody asks for another number."""


def base_scale(name: str) -> str:
    """The scale that one was stretched from by a number of epochs of its own: `quick` for `quick-3-epochs`."""
    return name.partition("-")[0]


def default_seed_count(scale: str) -> int:
    """How many runs a cell has at a scale, or at one stretched from it."""
    return SEEDS.get(base_scale(scale), 1)


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def get_scale(name: str) -> Scale:
    """The scale of that name.

    Raises:
        UserError: there is none.
    """
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    return SCALES[name]


def select_scale(name: str, epochs: int | None, protocol: Protocol) -> Scale:
    """The named scale, or one like it at which the protocol's main schedule has so many epochs of its own batches.

    Raises:
        UserError: there is no such scale, or more epochs than the protocol has.
    """
    scale = get_scale(name)
    if epochs is None:
        return scale
    whole = protocol.schedule.epochs
    if epochs > whole:
        raise UserError(f"--epochs {epochs} is more than protocol {protocol.name} has; allowed: 1 to {whole}")
    factor = epochs / whole
    if factor == scale.factor:
        return scale
    # The batch is the protocol's own: when no scale had another one, these runs had this identity.
    stretched = scale.replace(name=f"{name}-{epochs}-epochs", factor=factor, batch_factor=1.0)
    # A scale that is equal in all but its name is that scale, so its runs are not trained twice.
    same = (known for known in SCALES.values() if stretched == known.replace(name=stretched.name))
    return next(same, stretched)


CHANGEABLE = (
    "learning_rate",
    "mobile_learning_rate",
    "decay",
    "warmup_epochs",
    "batch_size",
    "momentum",
    "weight_decay",
    "nesterov",
    "rotated_crop",
)
"""The fields of a protocol that `--set protocol.FIELD=VALUE` changes."""


PAPER = "paper"
