"""Describe how runs differ from the default, for whoever reads their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from benchmark.core.protocols import PROTOCOLS, base_scale, get_protocol
from benchmark.planning.request import RunFactory

SHARED_BATCHES = ("imagenet",)
"""Protocols whose published numbers were trained on several GPUs, so that norms saw only parts of each batch."""


def list_notes(factory: RunFactory, usual_protocol: str) -> list[str]:
    """List how runs differ from those of a table with this protocol, a sentence for each difference."""
    texts = []
    changed = _changed_protocol(factory)
    if factory.protocol.name != usual_protocol or changed:
        values = ", ".join(f"{name} = {value}" for name, value in changed.items())
        texts.append(f"Protocol {factory.protocol.name}{' with ' + values if values else ''}.")
    if factory.protocol.name == "tfkd":
        texts.append("TF-KD's random rotation of the images by up to 15 degrees is left out.")
    if factory.augmentation != "standard":
        texts.append(f"Students are trained with {factory.augmentation} on top of the protocol's augmentation.")
    if factory.teacher_seeds == "paired":
        texts.append("Each seed has a teacher of its own.")
    if factory.teacher_outputs == "atlas":
        texts.append(
            "Methods that need only the teacher's logits of the plain view read them in half precision from its atlas; "
            "their costs leave out the making of it."
        )
    if factory.processes > 1:
        texts.append(f"{factory.processes} processes shared each batch; in each of them norms saw its own images only.")
    if factory.validation:
        texts.append(f"Evaluated on {factory.validation:.0%} of the training images, held out; not on the test set.")
    for method, chosen in factory.options.items():
        values = ", ".join(f"{name} = {value}" for name, value in chosen.items())
        texts.append(f"{method} with {values}.")
    return texts


def is_default_setting(factory: RunFactory, usual_protocol: str) -> bool:
    """Whether the runs follow a protocol in full, on all images and the test set, with no option changed.

    Sharing a batch among processes changes the protocol, because norms see parts of it; ImageNet's is defined that way.
    """
    plain = not factory.options and factory.augmentation == "standard"
    plain &= factory.teacher_outputs == "live"
    plain &= factory.processes == 1 or usual_protocol in SHARED_BATCHES
    whole = factory.validation == 0 and factory.fraction == 1
    return plain and whole and factory.protocol == get_protocol(usual_protocol)


def precision_note(precisions: Iterable[str], scale: str) -> list[str]:
    """Note that runs of scale `paper` are not in fp32, the default of that scale; nothing for others."""
    found = set(precisions)
    if base_scale(scale) != "paper" or not found - {"fp32"}:
        return []
    return ["Precision bf16." if found == {"bf16"} else "Some runs are in precision bf16."]


def variant_suffix(factory: RunFactory) -> str:
    """Make a short name for files of runs that differ from the default, "" for those that do not."""
    changes: dict[str, Any] = {
        "protocol": _changed_protocol(factory),
        "options": factory.options,
        "augmentation": factory.augmentation.removeprefix("standard"),
        "teachers": factory.teacher_seeds.removeprefix("shared"),
        "teacher outputs": factory.teacher_outputs.removeprefix("live"),
        "files": sorted(file.teacher.sha256 for file in factory.released.values()),
        "validation": factory.validation,
        "processes": factory.processes - 1,
    }
    made = sorted((name, repr(change)) for name, change in changes.items() if change)
    return hashlib.sha256(repr(made).encode()).hexdigest()[:8] if made else ""


def _changed_protocol(factory: RunFactory) -> dict[str, Any]:
    return factory.protocol.changes_from(PROTOCOLS.get(factory.protocol.name, factory.protocol))
