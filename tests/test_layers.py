"""Who may import whom: methods know only their contract, pages know no training, and one module knows the cluster."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmark", "methods", "tables", "figures", "slurm")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports_of(path: Path, at_once: bool = False) -> frozenset[str]:
    """The modules of the suite that a file imports; at_once: without those that only its functions or types need."""

    def nodes(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.iter_child_nodes(tree):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if not (at_once and (is_function or is_for_types)):
                yield node
                yield from nodes(node)

    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)} has a relative import"
            module = node.module or ""
            # What is imported from a package may be one of its modules.
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in found if name.partition(".")[0] in PACKAGES)


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def breaches(files: list[Path], *forbidden: str) -> list[str]:
    """The imports of some files that are of forbidden packages."""
    return [f"{name_of(path)}: {module}" for path in files for module in imports_of(path) if is_in(module, *forbidden)]


def test_methods_import_their_contract_and_each_other_only() -> None:
    strangers = [
        f"{name_of(path)}: {module}"
        for path in FILES
        if is_in(name_of(path), "methods")
        for module in imports_of(path)
        if not is_in(module, "benchmark.method", "methods") and module != "benchmark"
    ]
    assert strangers == []


def test_tables_and_figures_know_records_and_nothing_of_how_they_come_about() -> None:
    pages = [path for path in FILES if is_in(name_of(path), "tables", "figures")]
    makers = (
        "benchmark.planning.jobs",
        "benchmark.training",
        "benchmark.execution.pool",
        "benchmark.executors",
        "benchmark.run",
    )
    assert breaches(pages, *makers, "methods", "slurm") == []


def test_one_module_of_the_benchmark_knows_the_cluster() -> None:
    others = [path for path in FILES if is_in(name_of(path), "benchmark") and name_of(path) != "benchmark.executors"]
    assert breaches(others, "slurm") == []


def test_nothing_imports_the_command_line_that_knows_everything() -> None:
    assert breaches(FILES, "benchmark.run") == []


@pytest.mark.parametrize("command", ["slurm.status", "slurm.cancel", "slurm.worker"])
def test_what_looks_at_a_sweep_starts_without_the_process_pool(command: str) -> None:
    paths = {name_of(path): path for path in FILES}
    reached, waiting = set(), [command]
    while waiting:
        module = waiting.pop()
        if module in paths and module not in reached:
            reached.add(module)
            waiting += [module.rpartition(".")[0], *imports_of(paths[module], at_once=True)]
    assert {"benchmark.execution.pool", "benchmark.executors"} & reached == set()
