"""Who may import whom: no circles, one direction, and a few stricter rules; docs/structure.md shows what is so."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.layers import (
    FILES,
    PACKAGES,
    PAGE,
    PICTURE,
    ROOT,
    draw_page,
    draw_picture,
    draw_table,
    find_backward_steps,
    find_circles,
    graph_modules,
    graph_packages,
    name_module,
    read_imports,
)


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def find_forbidden(files: list[Path], *forbidden: str) -> list[str]:
    """The imports of some files that are of forbidden packages."""
    return [
        f"{name_module(path)} imports {module}"
        for path in files
        for module in read_imports(path)
        if is_in(module, *forbidden)
    ]


def test_no_circle_among_files() -> None:
    assert find_circles(graph_modules(FILES)) == []


def test_no_circle_among_packages() -> None:
    assert find_circles(graph_packages(graph_modules(FILES))) == []


def test_every_import_is_of_an_earlier_stage() -> None:
    assert find_backward_steps(graph_modules(FILES)) == []


def test_circles_and_backward_steps_are_noticed(tmp_path: Path) -> None:
    for module, text in {
        "benchmark/core/a.py": "def f():\n    from benchmark.io import b\n",
        "benchmark/core/d.py": "",
        "benchmark/io/__init__.py": "",
        "benchmark/io/b.py": "if TYPE_CHECKING:\n    from benchmark.core.a import f\n",
        "benchmark/io/c.py": "import benchmark.core.d\n",
        "benchmark/extra.py": "",
    }.items():
        path = tmp_path / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = graph_modules(sorted(tmp_path.rglob("*.py")), tmp_path)
    assert find_circles(modules) == ["benchmark.core.a imports benchmark.io.b imports benchmark.core.a"]
    assert find_circles(graph_packages(modules)) == ["benchmark.core imports benchmark.io imports benchmark.core"]
    assert find_backward_steps(modules) == [
        "benchmark.core.a imports benchmark.io.b, of a later stage",
        "benchmark.extra is missing in STAGES",
    ]


def test_few_modules_lie_loose_in_benchmark() -> None:
    loose = {path.stem for path in (ROOT / "benchmark").glob("*.py")} - {"__init__", "run", "tune"}
    assert len(loose) <= 5, sorted(loose)


def test_the_picture_and_the_table_of_the_structure_are_up_to_date() -> None:
    packages = graph_packages(graph_modules(FILES))
    page = PAGE.read_text(encoding="utf-8")
    assert PICTURE.read_text(encoding="utf-8") == draw_picture(packages), "run python -m tests.layers"
    assert page == draw_page(page, draw_table(packages)), "run python -m tests.layers"


def test_methods_import_their_contract_and_each_other_only() -> None:
    strangers = [
        f"{name_module(path)} imports {module}"
        for path in FILES
        if is_in(name_module(path), "methods")
        for module in read_imports(path)
        if not is_in(module, "benchmark.method", "methods") and module != "benchmark"
    ]
    assert strangers == []


def test_tables_and_figures_know_records_and_nothing_of_how_they_come_about() -> None:
    pages = [path for path in FILES if is_in(name_module(path), "tables", "figures")]
    makers = ("planning", "training", "execution", "executors", "run")
    assert find_forbidden(pages, *(f"benchmark.{name}" for name in makers), "methods", "slurm") == []


def test_one_module_of_the_benchmark_knows_the_cluster() -> None:
    others = [
        path for path in FILES if is_in(name_module(path), "benchmark") and name_module(path) != "benchmark.executors"
    ]
    assert find_forbidden(others, "slurm") == []


def test_nothing_imports_the_command_line_that_knows_everything() -> None:
    assert find_forbidden(FILES, "benchmark.run") == []


@pytest.mark.parametrize("command", ["slurm.status", "slurm.cancel", "slurm.worker"])
def test_what_looks_at_a_sweep_starts_without_the_process_pool(command: str) -> None:
    paths = {name_module(path): path for path in FILES}
    reached, waiting = set(), [command]
    while waiting:
        module = waiting.pop()
        if module in paths and module not in reached:
            reached.add(module)
            waiting += [module.rpartition(".")[0], *read_imports(paths[module], at_once=True)]
    assert {"benchmark.execution.pool", "benchmark.executors"} & reached == set()


def test_pyproject_names_every_package_that_is_installed() -> None:
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in PACKAGES
        for path in (ROOT / name).rglob("__init__.py")
    }
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert named == sorted(there)


def test_pyproject_names_every_other_file_that_is_installed() -> None:
    """A template or a table that a wheel lacks is missed only by those who install it."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {
        path
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    there = {
        path
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "." not in path.relative_to(ROOT).parts[-1][:1]
    }
    assert there - packed == set()
