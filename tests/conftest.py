"""In which order tests run, and which process runs them, where there are several (pytest-xdist)."""

from __future__ import annotations

from typing import Any

import pytest

try:
    from xdist.scheduler import LoadScopeScheduling
except ImportError:
    LoadScopeScheduling = object

SWEEPS = ("test_slurm_", "test_executors")
"""They mostly wait for a SLURM of their own: one process runs them all, while the others keep the processors busy."""
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
"""What takes longest, so that nobody waits for it at the end."""
ALONE = ("test_demo_learns",)
"""Files whose tests share nothing that is dear to prepare."""


def _file_of(node: str) -> str:
    return node.partition("::")[0].rpartition("/")[2]


def _rank(item: pytest.Item) -> int:
    name = _file_of(item.nodeid)
    if name.startswith(SWEEPS):
        return -1
    return next((place for place, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
