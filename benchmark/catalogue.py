"""Describe the methods: for `--list`, and for docs/methods.md, which `python -m benchmark.catalogue` writes.

Facts that take a training step to find out are kept in `facts.json`; a method that it lacks is probed when listed.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from benchmark.cli.app import run_app
from benchmark.core.errors import UserError
from benchmark.core.protocols import PROTOCOLS, STAGE_SCHEDULES
from benchmark.io.files import write_text
from benchmark.method.contract import Method, MethodOptions
from benchmark.planning.facts import FACTS, STUDENT, TEACHER, Facts, load_facts, probe_method
from benchmark.plugins.registry import all_methods, method_class
from benchmark.plugins.source import user_errors
from benchmark.training.cost import BATCH
from tables.escaping import Markup, make_environment

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
GOLDEN = ROOT / "tests" / "golden"
TEMPLATES = Path(__file__).parent / "templates"
"""The page, a method's part of it, and what experiments have shown about a method: not in the method's file, so that
this stays as it was."""
DEFAULT_PROTOCOL = "lsskd"


@dataclass(frozen=True)
class MethodEntry:
    """A method with its facts and what Baseline's step costs."""

    method: type[Method]
    facts: Facts
    baseline: int

    @property
    def needs(self) -> str:
        """What it needs beside images, labels and the student's logits."""
        return "; ".join(self.facts.needs) or "nothing"

    @property
    def teacher(self) -> str:
        """Whether it needs a trained teacher."""
        if self.method.teaches_itself:
            return "itself"
        return "yes" if self.method.needs_teacher else "no"

    @property
    def cost(self) -> str:
        """Multiply-adds of a training step as a multiple of Baseline's."""
        return f"{self.facts.multiply_adds / self.baseline:.2f}"

    @property
    def weights(self) -> str:
        """The weights of the loss terms, and where a protocol has others."""
        by_weights: dict[str, list[str]] = defaultdict(list)
        for protocol, weights in self.facts.weights.items():
            by_weights[", ".join(f"{name} {weight:g}" for name, weight in weights.items())].append(protocol)
        usual = next(text for text, protocols in by_weights.items() if DEFAULT_PROTOCOL in protocols)
        others = [f"{text} under {', '.join(names)}" for text, names in by_weights.items() if text != usual]
        return "; ".join([usual, *others])

    @property
    def golden(self) -> str:
        """The public implementation's cases that its losses are tested against."""
        cases = golden_cases(self.method.golden)
        return f"{self.method.golden}: {', '.join(cases)}" if cases else "none"


def golden_cases(name: str | None) -> tuple[str, ...]:
    """The cases in a file of golden losses; none without one."""
    path = GOLDEN / f"losses_{name}.npz"
    if name is None or not path.exists():
        return ()
    with np.load(path) as stored:
        return tuple(dict.fromkeys(key.partition(".")[0] for key in stored.files))


def _facts(name: str) -> Facts:
    stored = load_facts().get(name)
    if stored is None or stored["version"] != method_class(name).version:
        with user_errors(method_class(name), "be described"):
            return probe_method(name)
    return Facts(**{**stored, "needs": tuple(stored["needs"])})


def entries(facts: Mapping[str, Facts] | None = None) -> list[MethodEntry]:
    """Every method, helpers of others last; with the stored facts, unless other ones are given."""
    known = facts or {name: _facts(name) for name in all_methods()}
    baseline = known["Baseline"].multiply_adds
    found = [MethodEntry(cls, known[name], baseline) for name, cls in all_methods().items()]
    return sorted(found, key=lambda entry: not entry.method.listed)


def list_methods() -> RenderableType:
    """A line for each method that can be named: its name, paper, teacher and cost."""
    screen = Grid(box=None, pad_edge=False, header_style="bold")
    screen.add_column("method", no_wrap=True)
    # With it, a row fits into a terminal of 80 columns.
    screen.add_column("paper", no_wrap=True, overflow="ellipsis", max_width=43)
    screen.add_column("teacher", no_wrap=True)
    screen.add_column("cost", no_wrap=True, justify="right")
    for entry in entries():
        if entry.method.listed:
            name = entry.method.name if entry.method.in_default_grid else f"{entry.method.name} +"
            cells = (name, _shorten_citation(entry.method.paper), entry.teacher, entry.cost)
            screen.add_row(*map(Text, cells))
    return Group(
        screen,
        Text("cost: multiply-adds of a training step over Baseline's; +: runs only if --methods names it", "dim"),
    )


def _shorten_citation(paper: str) -> str:
    """Authors and venue of `authors, title, venue`."""
    parts = paper.split(", ")
    return f"{parts[0]}, {parts[-1]}" if len(parts) > 2 else paper


def describe_method(name: str) -> RenderableType:
    """All that docs/methods.md says of a method, for a terminal.

    Raises:
        UserError: there is no such method.
    """
    # Only this command needs it.
    from rich.markdown import Markdown

    method_class(name)
    entry = next(entry for entry in entries() if entry.method.name == name)
    return Markdown(_section(entry, with_cost=True))


def to_markdown(known: list[MethodEntry]) -> str:
    """The page docs/methods.md."""
    used: Counter[str] = Counter()
    overview = []
    for entry in known:
        anchor = _anchor(entry.method.name)
        overview.append((entry, f"{anchor}-{used[anchor]}" if used[anchor] else anchor))
        used[anchor] += 1
    return _render(
        "methods.md.j2", overview=overview, sections=map(_section, known), batch=BATCH, pair=f"{TEACHER}>{STUDENT}"
    )


def _section(entry: MethodEntry, with_cost: bool = False) -> str:
    """All that is said of a method, in Markdown; with_cost: also what stands in the overview of the page."""
    cls = entry.method
    base = _base_with_same_options(cls)
    fields = cls.Options.model_fields
    changed = {
        name: field.default
        for name, field in fields.items()
        if base and field.default != base.Options.model_fields[name].default
    }
    return _render(
        "method.md.j2",
        entry=entry,
        method=cls,
        with_cost=with_cost,
        schedule=STAGE_SCHEDULES.get(cls.name),
        protocols=PROTOCOLS.values(),
        pairs=_pair_settings(cls.pair_options),
        base=base,
        changed=changed,
        options={name: (field, _allowed(cls, name)) for name, field in fields.items()},
    )


def _render(template: str, **values: Any) -> str:
    words = {"anchor": _anchor, "assignments": _assignments, "cell": _cell, "sentence": _sentence}
    return make_environment(TEMPLATES, Markup).get_template(template).render(**words, **values)


def describe_in_full(entry: MethodEntry) -> str:
    """Write all that the page of methods says of one, in Markdown, without its heading and without links."""
    return re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", _section(entry).split("\n", 3)[3])


def _base_with_same_options(cls: type[Method]) -> type[Method] | None:
    """The method that this one is derived from, if their options differ in nothing but the defaults."""
    names = cls.Options.model_fields.keys()
    for base in all_methods().values():
        if base in cls.__mro__[1:] and base.Options.model_fields.keys() == names:
            return base if all(_allowed(cls, name) == _allowed(base, name) for name in names) else None
    return None


@functools.cache
def _schemas_of(options: type[MethodOptions]) -> Mapping[str, Any]:
    """JSON schemas of a method's options, by name; pydantic takes milliseconds for them, and a page asks often."""
    properties: dict[str, Any] = options.model_json_schema()["properties"]
    return properties


def _allowed(cls: type[Method], name: str) -> str:
    schema = _schemas_of(cls.Options)[name]
    return _cell(" or ".join(_range(kind) for kind in schema.get("anyOf", [schema])))


def _range(schema: Mapping[str, Any]) -> str:
    if schema.get("type") == "null":
        return "none"
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "boolean":
        return "true, false"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[bound]:g}" for bound, word in bounds.items() if bound in schema]
    whole = "whole, " if schema.get("type") == "integer" else ""
    return whole + (", ".join(limits) or "any number")


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` = {value}" for name, value in values.items())


def _pair_settings(options: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The settings of pairs in one line; pairs with equal ones stand together."""
    pairs: dict[str, list[str]] = defaultdict(list)
    for (teacher, student), values in options.items():
        pairs[_assignments(values)].append(f"{teacher}>{student}")
    return "; ".join(f"{values} ({', '.join(names)})" for values, names in pairs.items())


def _sentence(text: str) -> str:
    return _cell(text if text.endswith(".") else f"{text}.")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _anchor(name: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(letter for letter in name.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say whether the files are as they should be.")
    ] = False,
) -> int:
    """Watch a training step of every method and write benchmark/facts.json and docs/methods.md."""
    facts = {name: probe_method(name) for name in all_methods()}
    content = json.dumps({name: asdict(found) for name, found in facts.items()}, indent=1) + "\n"
    wanted = {FACTS: content, PAGE: to_markdown(entries(facts))}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        raise UserError(
            f"{', '.join(path.name for path in stale)}: not as the methods are; run python -m benchmark.catalogue"
        )
    for path in stale:
        write_text(path, wanted[path])
        print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    run_app(main, "python -m benchmark.catalogue")
