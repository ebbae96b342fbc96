"""Every method gives the same bits when it was killed and resumed, and beside other methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.core.spec import Run
from benchmark.plugins.registry import all_methods
from benchmark.training import cohort as cohort_module
from tests.contract_runs import (
    Killed,
    assert_same_bits,
    cohort_of,
    narrow_networks,
    run_to_resume,
    train_what_is_missing,
    with_dependencies_of,
)

__all__ = ["narrow_networks"]

QUICK = ("CRD", "SSKD", "PS-KD", "LSSKD", "CS-KD", "DLB", "SLA")
"""Methods that `make test` kills: those whose state is a memory, a head, tables, an earlier batch or a second image."""
KILLED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in all_methods()]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what others depend on is trained once."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize("method", KILLED)
def test_a_killed_and_resumed_run_gives_the_same_bits(method: str, kept: Path, tmp_path: Path, monkeypatch) -> None:
    run = run_to_resume(method)
    train_what_is_missing(run, kept)
    monkeypatch.setattr(cohort_module, "COST_OF_A_CHECKPOINT", 0)
    folder = with_dependencies_of(run, kept, tmp_path)
    left = iter(range(5))

    def kill() -> bool:
        if next(left, None) is None:
            raise Killed
        return False

    with pytest.raises(Killed):
        cohort_of([run], folder).train(kill)
    resumed = cohort_of([run], folder)
    assert resumed.resume()
    assert (resumed.epoch, resumed.step) == (1, 1), "the last checkpoint is the one before the step that was lost"
    assert resumed.train()
    assert_same_bits(run, folder, kept)


@pytest.fixture(scope="module")
def together(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of all methods are trained beside each other: in one cohort for each teacher that they have.

    Methods without a teacher are in the largest one. A run whose teacher no other has is between two others.
    """
    folder = tmp_path_factory.mktemp("together")
    cohorts: dict[Any, list[Run]] = {}
    for run in map(run_to_resume, all_methods()):
        train_what_is_missing(run, kept)
        with_dependencies_of(run, kept, folder)
        cohorts.setdefault((run.teacher, run.teacher_precision) if run.teacher else None, []).append(run)
    untaught = cohorts.pop(None)
    for runs in cohorts.values():
        if len(runs) == 1:
            shared = {"teacher": runs[0].teacher.model_dump(), "teacher_precision": runs[0].teacher_precision}
            runs[:] = [untaught.pop(), *runs, run_to_resume("KD").replace(**shared)]
    max(cohorts.values(), key=len).extend(untaught)
    for runs in cohorts.values():
        cohort = cohort_of(runs, folder)
        assert cohort.train()
        assert cohort.broken == []
    return folder


@pytest.mark.parametrize("method", all_methods())
def test_a_run_gives_the_same_bits_alone_and_beside_others(method: str, kept: Path, together: Path) -> None:
    assert_same_bits(run_to_resume(method), together, kept)
