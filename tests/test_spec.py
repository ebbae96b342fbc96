"""The identity of a run: its canonical content, its digest, and the short ways to both."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.core.protocols import PROTOCOLS, SCALES
from benchmark.core.spec import Frozen, LRSchedule, Protocol, ReleasedTeacher, Run, Scale
from benchmark.planning.request import RunFactory
from benchmark.plugins.registry import method_names

NAMES = st.text(max_size=8)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
SCHEDULES = st.builds(
    LRSchedule, epochs=st.integers(1, 500), milestones=st.tuples(st.integers(), st.integers()) | st.just(())
)
COLOURS = st.none() | st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3)
PROTOCOL = st.builds(
    Protocol,
    name=NAMES,
    schedule=SCHEDULES,
    learning_rate=st.floats(1e-300, 1e300) | st.integers(1, 9),
    mobile_learning_rate=st.none() | st.floats(1e-9, 1),
    mean=COLOURS,
    std=COLOURS,
    nesterov=st.booleans(),
    method_schedules=st.dictionaries(NAMES, SCHEDULES, max_size=2),
    method_options=st.dictionaries(NAMES, st.dictionaries(NAMES, ANYTHING, max_size=2), max_size=2),
)
RELEASED = st.builds(ReleasedTeacher, network=NAMES, sha256=NAMES)


def runs(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Run]:
    """Runs of any content; parts: what they may depend on."""
    return st.builds(
        Run,
        dataset=NAMES,
        fingerprint=NAMES,
        fraction=st.floats(0, 1, exclude_min=True),
        fraction_seed=st.integers(0, 2**70),
        validation_seed=st.integers(),
        student=NAMES,
        method=NAMES,
        method_version=st.integers(),
        options=st.dictionaries(NAMES, ANYTHING, max_size=3),
        teacher=parts | RELEASED,
        head=parts | RELEASED,
        start=parts,
        teacher_precision=st.sampled_from([None, "fp32", "bf16"]),
        augmentation=st.sampled_from(["standard", "cutout+cutmix"]),
        protocol=PROTOCOL,
        scale=st.builds(Scale, name=NAMES, factor=st.floats(1e-300, 1)),
        seed=st.integers(0, 2**70),
    )


ODD_RUNS = runs(st.none() | runs(st.none()))


def plain(value: Frozen) -> str:
    """What the content of a value is, as it is defined: all of it as canonical JSON."""
    return json.dumps(value.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@given(ODD_RUNS)
@settings(max_examples=60, deadline=None)
def test_the_content_of_a_run_is_its_canonical_json(run: Run) -> None:
    assert run.digest == hashlib.sha256(plain(run).encode()).hexdigest()
    assert run.content == plain(run)
    assert run.protocol.content == plain(run.protocol)


def test_ids_are_what_they_always_were() -> None:
    """Records on disk are found by them."""
    request = RunFactory("cifar100", "c" * 64, PROTOCOLS["lsskd"], SCALES["paper"], torch.device("cpu"))
    ids = {method: request.run(method, "WRN-16-2", "WRN-40-2", 1).id.rpartition("-")[2] for method in IDS}
    assert ids == IDS


IDS = {"KD": "e2163ff3c528", "SSKD": "e0150ee26b2d", "LSSKD": "c51373cab5ce", "AB": "c86032074506"}


def test_every_method_has_the_same_runs_whether_made_at_once_or_one_at_a_time() -> None:
    changes: list[dict[str, Any]] = [{}, {"fraction": 0.5}, {"fraction": 0.5, "teacher_data": "same"}]
    changes += [{"teacher_seeds": "paired"}, {"released": {}, "validation": 0.1, "augmentation": "cutmix"}]
    for change, method in itertools.product(changes, method_names()):

        def request(changed: dict[str, Any] = change) -> RunFactory:
            place = ("digits", "0" * 64, PROTOCOLS["imagenet"], SCALES["demo"], torch.device("cpu"))
            return RunFactory(*place, **changed)

        cell = (method, "ResNet20", "ResNet56")
        at_once = request()
        for seed in range(3):
            made, alone = at_once.run(*cell, seed), request().run(*cell, seed)
            assert plain(made) == plain(alone)
            assert made.digest == hashlib.sha256(plain(alone).encode()).hexdigest()


def test_runs_share_what_they_depend_on() -> None:
    request = RunFactory("digits", "0" * 64, PROTOCOLS["lsskd"], SCALES["demo"], torch.device("cpu"))
    first, second = (request.run("SSKD", student, "ResNet56", 3) for student in ("ResNet20", "ResNet8"))
    assert first.teacher is second.teacher
    assert first.head is second.head


def test_a_run_goes_to_another_process_as_it_is() -> None:
    run = RunFactory("digits", "0" * 64, PROTOCOLS["lsskd"], SCALES["demo"], torch.device("cpu")).run(
        "SSKD", "ResNet20", "ResNet56", 3
    )
    there = pickle.loads(pickle.dumps(run))
    assert there == run
    assert plain(there) == plain(run)
    assert there.replace(seed=4) != run


def test_a_copy_with_other_parts_remembers_nothing() -> None:
    protocol = PROTOCOLS["lsskd"]
    assert protocol.content
    copy = protocol.replace(schedule=LRSchedule(epochs=7))
    assert copy.content == plain(copy) != protocol.content
    assert copy.digest != protocol.digest
    assert copy == protocol.replace(schedule={"epochs": 7})
    assert copy.without_tables() != protocol.without_tables()
