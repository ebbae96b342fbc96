"""Mark the slow tests, order all tests, and distribute them over processes (pytest-xdist)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    from xdist.scheduler import LoadScopeScheduling
except ImportError:
    LoadScopeScheduling = object

SWEEPS = ("test_slurm_", "test_executors")
"""Files that mostly wait for a SLURM of their own: one process runs them, while the others keep the processors busy."""
FIRST = (
    "test_demo_learns",
    "test_distributed",
    "test_reproducibility",
    "test_contract",
    "test_run_command",
    "test_chaos",
    "test_backbones",
    "test_merge",
    "test_edge",
    "test_catalogue",
    "test_report",
    "test_devcluster",
)
"""Files that take longest; they start first, so that no process waits for them at the end."""
ALONE = ("test_demo_learns",)
"""Files whose tests share no costly fixture, and so may run in different processes."""
SLOW: dict[str, tuple[str, ...]] = {
    "test_accelerator.py": ("test_steps_neither_wait_for_the_device_nor_mix_it_with_the_host",),
    "test_catalogue.py": (
        "test_what_is_said_of_a_method_is_what_a_step_of_it_shows",
        "test_the_cost_that_plans_reckon_with_is_the_one_counted_in_a_step",
    ),
    "test_chaos.py": (
        "test_sixty_faults_cost_nothing",
        "test_a_broken_suite_is_found_out",
        "test_what_is_not_broken_is_not_found_out",
    ),
    "test_demo_learns.py": ("test_every_method_learns_the_digits_at_demo_scale",),
    "test_devcluster.py": (),
    "test_distributed.py": ("test_stopped_and_killed_and_resumed_gives_the_same_bits",),
    "test_executors.py": ("test_what_a_failed_teacher_was_to_teach_fails_with_its_reason",),
    "test_reproducibility.py": (
        "test_bf16_gives_the_same_bits_in_another_cohort_and_order_and_after_a_stop",
        "test_a_cohort_killed_at_ten_random_moments_gives_the_same_bits",
    ),
    "test_run_command.py": ("test_a_table_stopped_by_ctrl_c_goes_on_from_its_checkpoint",),
    "test_slurm_cancel.py": (),
    "test_slurm_failures.py": (),
    "test_slurm_folder.py": (),
    "test_slurm_limits.py": (),
    "test_slurm_submission.py": (),
    "test_slurm_survival.py": (),
    "test_slurm_upgrade.py": (),
}
"""What `make test` leaves to `make test-all`: the functions that take longest, by file; () is the whole file.

Of the sweeps on a real SLURM, `test_executors` stays, so that `make test` notices a change that breaks sweeps.
"""
FIRST_OF_EACH_METHOD = "test_a_method_learns_and_teaches_only_what_it_should"
"""`make test` runs this test on the first pair of networks of every method; the other pairs are slow."""


def _file_of(node: str) -> str:
    return node.partition("::")[0].rpartition("/")[2]


def _rank(item: pytest.Item) -> int:
    name = _file_of(item.nodeid)
    if name.startswith(SWEEPS):
        return -1
    return next((place for place, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))


def _is_slow(item: pytest.Item) -> bool:
    functions = SLOW.get(item.path.name)
    return functions is not None and (not functions or item.originalname in functions)  # type: ignore[attr-defined]


def _check_slow_names(files: set[Path]) -> None:
    """Refuse a name in SLOW that its file no longer has, since `make test` would then run the renamed test."""
    for file in files:
        text = file.read_text(encoding="utf-8")
        for function in SLOW.get(file.name, ()):
            if f"def {function}(" not in text:
                raise pytest.UsageError(f"tests/conftest.py: SLOW names {function}, which {file.name} does not have")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all tests without collecting garbage, and leave what they import out of later collections."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


# Before the plugin that deselects by -m.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _check_slow_names({item.path for item in items})
    methods: set[str] = set()
    for item in items:
        is_slow = _is_slow(item)
        if item.name.startswith(f"{FIRST_OF_EACH_METHOD}["):
            method = item.callspec.params["method"]  # type: ignore[attr-defined]
            is_slow = method in methods
            methods.add(method)
        if is_slow:
            item.add_marker(pytest.mark.slow)
    items.sort(key=_rank)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a process all tests of a file, in the order of their collection."""

    def _split_scope(self, nodeid: str) -> str:
        name = _file_of(nodeid)
        if name.startswith(SWEEPS):
            return "sweeps"
        return nodeid if name.startswith(ALONE) else name

    def schedule(self) -> None:
        self.config.option.loadscopereorder = False
        super().schedule()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return ByFile(config, log)
