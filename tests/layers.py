"""The layers of the suite, read from its imports: `python -m tests.layers` draws docs/structure.md and its picture."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import networkx

from tests.documents import ROOT

PACKAGES = ("benchmark", "methods", "tables", "figures", "slurm")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGE = ROOT / "docs" / "structure.md"
PICTURE = ROOT / "docs" / "images" / "layers.svg"
BEGIN, END = "<!-- begin: python -m tests.layers -->\n", "<!-- end -->\n"

# A package imports only packages that stand before it. Modules directly in benchmark/ count as packages of their own.
STAGES = {
    "benchmark": "the version of the suite",
    "benchmark.core": "runs, protocols, random streams, statistics",
    "benchmark.io": "reading and writing files safely",
    "benchmark.cli": "what all command lines share",
    "benchmark.data": "datasets and augmentation",
    "benchmark.backbones": "networks",
    "benchmark.method": "the contract of a method",
    "methods": "the methods, a file for each",
    "benchmark.plugins": "finding methods and their options",
    "benchmark.results": "records, leases, provenance",
    "benchmark.training": "jobs, cohorts, checkpoints",
    "tables": "specifying and rendering tables",
    "figures": "specifying and rendering figures",
    "benchmark.planning": "from tables and figures to runs and jobs",
    "benchmark.execution": "scheduling jobs, the pool of processes",
    "benchmark.analysis": "from records to cells and curves",
    "slurm": "sweeps on a cluster",
    "benchmark.executors": "choosing this machine or a cluster",
    "benchmark.targets": "the tables and figures of a command",
    "benchmark.catalogue": "listing methods, writing docs/methods.md",
    "benchmark.merge": "bringing in the runs of others",
    "benchmark.export": "students as ONNX files and for model hubs",
    "benchmark.zoo": "trained students by name",
    "benchmark.faithfulness": "students compared with their teachers",
    "benchmark.audit": "checking the statements of the paper",
    "benchmark.decisions": "training seeds until a claim is decided",
    "benchmark.report": "the report of all records",
    "benchmark.speed": "measuring training speed",
    "benchmark.tune": "choosing hyper-parameters",
    "benchmark.probe": "probing a student on another dataset",
    "benchmark.run": "plan, train and render",
}


def name_module(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def read_statements(path: Path, at_once: bool = False) -> frozenset[tuple[str, str]]:
    """The imports of a file as pairs of module and name, the name empty in `import module`.

    at_once leaves out those that only its functions or types need.
    """

    def nodes(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.iter_child_nodes(tree):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if not (at_once and (is_function or is_for_types)):
                yield node
                yield from nodes(node)

    statements: set[tuple[str, str]] = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            statements |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            statements |= {(node.module or "", alias.name) for alias in node.names}
    return frozenset((module, name) for module, name in statements if module.partition(".")[0] in PACKAGES)


def read_imports(path: Path, at_once: bool = False) -> frozenset[str]:
    """The modules of the suite that a file imports, with the packages that they lie in, and imported names as well."""
    statements = read_statements(path, at_once)
    # What is imported from a package may be one of its modules.
    return frozenset({module for module, _ in statements} | {f"{module}.{name}" for module, name in statements if name})


def graph_modules(files: list[Path], root: Path = ROOT) -> networkx.DiGraph[str]:
    """A graph with an edge from each module to each module that it imports, inside functions and for types too."""
    names = {name_module(path, root) for path in files}
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(names)
    for path in files:
        importer = name_module(path, root)
        for module, name in read_statements(path):
            # `from package import module` imports the module and not what the package itself has.
            imported = f"{module}.{name}" if f"{module}.{name}" in names else module
            if imported in names and imported != importer:
                graph.add_edge(importer, imported)
    return graph


def name_package(module: str) -> str:
    """The package of a module; a module directly in benchmark/ is a package of its own."""
    first, *rest = module.split(".")
    return f"{first}.{rest[0]}" if first == "benchmark" and rest else first


def graph_packages(modules: networkx.DiGraph[str]) -> networkx.DiGraph[str]:
    """The graph of packages, each edge with the first pair of modules that makes it as `example`."""
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(map(name_package, modules))
    for importer, imported in sorted(modules.edges):
        pair = name_package(importer), name_package(imported)
        if pair[0] != pair[1] and not graph.has_edge(*pair):
            graph.add_edge(*pair, example=(importer, imported))
    return graph


def find_circles(graph: networkx.DiGraph[str]) -> list[str]:
    """A line for each circle of imports: one shortest way around."""
    lines = []
    for component in networkx.strongly_connected_components(graph):
        if len(component) > 1:
            circle = min(networkx.simple_cycles(graph.subgraph(component)), key=len)
            start = circle.index(min(circle))
            ordered = [*circle[start:], *circle[:start]]
            lines.append(" imports ".join([*ordered, ordered[0]]))
    return sorted(lines)


def find_backward_steps(modules: networkx.DiGraph[str]) -> list[str]:
    """A line for each import of a later stage, and for each package that STAGES does not have."""
    order = {stage: number for number, stage in enumerate(STAGES)}
    lines = [f"{package} is missing in STAGES" for package in {*map(name_package, modules)} - {*order}]
    for importer, imported in modules.edges:
        first, second = name_package(importer), name_package(imported)
        if first in order and second in order and order[first] < order[second]:
            lines.append(f"{importer} imports {imported}, of a later stage")
    return sorted(lines)


def draw_table(packages: networkx.DiGraph[str]) -> str:
    """The table of packages with all that each imports, in Markdown."""
    lines = ["| package | what it does | imports |", "|---|---|---|"]
    for stage, purpose in STAGES.items():
        imports = ", ".join(f"`{name}`" for name in STAGES if packages.has_edge(stage, name))
        lines.append(f"| `{stage}` | {purpose} | {imports} |")
    return "\n".join(lines) + "\n"


def draw_picture(packages: networkx.DiGraph[str]) -> str:
    """The packages as boxes in rows, each above all that it imports; arrows that others imply are left out."""
    shown = networkx.transitive_reduction(packages.subgraph(set(STAGES) - {"benchmark"}))
    order = list(STAGES)
    rows = [sorted(row, key=order.index) for row in networkx.topological_generations(shown.reverse())]
    width, height, box_width, row_height = 980, len(rows) * 66 + 30, 150, 66
    middle: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        # Rows are shifted in turn, so that long arrows pass beside boxes.
        shift = (-60, 0, 60)[number % 3] if len(row) < 5 else 0
        for position, name in enumerate(row):
            x = width / 2 + shift + (position - (len(row) - 1) / 2) * (box_width + 34)
            middle[name] = x, height - 40 - number * row_height
    level = {name: number for number, row in enumerate(rows) for name in row}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#4a5568"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for importer, imported in sorted(shown.edges):
        (x, y), (to_x, to_y) = middle[importer], middle[imported]
        near = level[importer] - level[imported] == 1
        style = 'stroke="#4a5568" stroke-width="1.4"' if near else 'stroke="#a0aec0" stroke-width="0.8"'
        parts.append(
            f'<path d="M{x:g} {y + 17:g}L{to_x:g} {to_y - 18:g}" fill="none" {style} marker-end="url(#head)"/>'
        )
    for name, (x, y) in middle.items():
        is_own = name.startswith("benchmark.")
        fill, stroke = ("#ebf4ff", "#3b6ea5") if is_own else ("#fff5e6", "#b7791f")
        parts.append(
            f'<rect x="{x - box_width / 2:g}" y="{y - 17:g}" width="{box_width}" height="34" rx="5" fill="{fill}" '
            f'stroke="{stroke}"/>'
            f'<text x="{x:g}" y="{y + 5:g}" font-size="13" text-anchor="middle">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw_page(text: str, table: str) -> str:
    """The page with its generated part replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + table + "\n" + END + after


def main() -> None:
    packages = graph_packages(graph_modules(FILES))
    PICTURE.write_text(draw_picture(packages), encoding="utf-8")
    PAGE.write_text(draw_page(PAGE.read_text(encoding="utf-8"), draw_table(packages)), encoding="utf-8")


if __name__ == "__main__":
    main()
