"""Describe the methods: for `--list`, and for docs/methods.md, which `python -m benchmark.catalogue` writes.

Facts that take a training step to find out are kept in `facts.json`; a method that it lacks is probed when listed.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
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
from benchmark.method.contract import Method
from benchmark.planning.facts import STUDENT, TEACHER, Facts, probe_method
from benchmark.plugins.registry import all_methods, method_class
from benchmark.plugins.source import user_errors
from benchmark.training.cost import BATCH

FACTS = Path(__file__).parent / "facts.json"
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
GOLDEN = ROOT / "tests" / "golden"
DEFAULT_PROTOCOL = "lsskd"

FINDINGS = {
    "SemCKD": """\
At its published weight of 400, SemCKD is at the limit of stable learning rates, and so is the public formula. In
float64 the suite's loss and gradients equal those of a plain copy of the public formula (`tests/plain_semckd.py`), also
for a MobileNetV2 at 28 and 33 pixels, where the heights of maps do not divide each other
(`tests/test_losses_semckd.py`). `python -m tests.plain_semckd OPTIONS` trains both in fp32 from one state, with the
same batches of 64 digits that are enlarged to a size; 22 steps are an epoch. By default ResNet20 teaches MobileNetV2
for an epoch; in the table, `W` stands for `--teacher ResNet56 --student ResNet20 --size 8`. For seeds 0 and 1 it shows
the step whose loss is not finite, or else top-1 on the test images, and the test loss if that is large:

| options | suite | public formula |
|---|---|---|
| `--size 28 --rate 0.05 --seeds 2` | step 12; step 12 | step 11; 10.0 % (test loss 1e11) |
| `--size 33 --rate 0.05 --seeds 2` | step 12; step 13 | step 12; step 18 |
| `--size 28 --rate 0.01 --seeds 1` | 10.0 % (16,500) | 10.0 % (15,400) |
| `W --rate 0.05 --seeds 2` | step 8; step 9 | step 8; step 9 |
| `W --rate 0.05 --weight 40 --seeds 1` | 10.6 % | 10.0 % |
| `W --rate 0.05 --weight 0 --seeds 1 --only suite` | 20.1 % | |
| `W --rate 0.02 --warmup 11 --steps 33 --seeds 2` | 10.0 %; 14.8 % | 10.0 %; 14.8 % |
| `W --rate 0.02 --warmup 44 --steps 132 --seeds 2` | 82.5 %; 74.4 % | 83.3 %; 61.8 % |
| `W --rate 0.02 --warmup 44 --steps 132 --weight 0 --seeds 1 --only suite` | 96.4 % | |

So a training or test loss that is not finite after an epoch comes from the formula at these rates, not from the suite.
The same holds for a low accuracy after few steps, such as 16.2 % for ResNet56>ResNet20: after an epoch even labels and
KD alone (weight 0) reach 20.1 %, and with the calibration the student has 10.0 or 14.8 % after one and a half, with
either formula, and is still behind after six. A lower learning rate (`--set protocol.learning_rate=0.01`, which its
authors use for MobileNets and ShuffleNets), a smaller `SemCKD.semckd_weight` or more epochs help.""",
}
"""What experiments have shown about a method, in Markdown; not in the method's file, so that this stays as it was."""


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


@functools.cache
def _stored() -> dict[str, dict[str, Any]]:
    return dict(json.loads(FACTS.read_text(encoding="utf-8"))) if FACTS.exists() else {}


def _facts(name: str) -> Facts:
    stored = _stored().get(name)
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
    return Markdown("\n".join(_section(entry, with_cost=True)))


def to_markdown(known: list[MethodEntry]) -> str:
    """The page docs/methods.md."""
    return "\n".join([INTRODUCTION, *_overview(known), *(line for entry in known for line in _section(entry))])


INTRODUCTION = f"""# Methods

`python -m benchmark.catalogue` writes this page from the methods themselves. `--methods` makes each of them a row of
any table whose columns have what the method needs.

- **needs**: what one training step of the method asks for, besides plain images, labels and the student's own logits.
- **extra parameters** are trained beside the student's. Only the plain student remains after training,
  unless the method's remark says otherwise.
- **cost**: multiply-adds of the forward and backward passes of a training step, divided by Baseline's, for one image of
  a batch of {BATCH}. They include the teacher's forward, which the runs of a cohort share.
- **weights** are those of the loss terms.
- **golden cases** come from the public implementation. Tests compare losses and gradients with them in float64.

**Missing** are methods that need a strongly augmented second view of each image: MLKD (logits at several levels) and
CRLD (consistency across views). The suite has no strong augmentation, and MLKD's code also trains twice as long, 480
epochs. Beside the other rows theirs would compare augmentations and schedules rather than losses.

Needs, parameters, cost and weights are those of {TEACHER}>{STUDENT} with 50,000 images of 32x32 pixels in 100 classes.
"""


def _overview(known: list[MethodEntry]) -> Iterator[str]:
    yield "| method | needs | extra parameters | cost |"
    yield "|---|---|--:|--:|"
    anchors: list[str] = []
    for entry in known:
        anchor = _anchor(entry.method.name)
        again = anchors.count(anchor)
        anchors.append(anchor)
        link = f"[{entry.method.name}](#{anchor}{f'-{again}' if again else ''})"
        yield f"| {_cell(link)} | {entry.needs} | {entry.facts.extra_parameters:,} | {entry.cost} |"


def _section(entry: MethodEntry, with_cost: bool = False) -> Iterator[str]:
    """The lines on a method; with_cost: also what stands in the overview of the page."""
    cls = entry.method
    yield ""
    yield f"## {_cell(cls.name)}"
    yield ""
    yield f"{_sentence(cls.paper)} {_sentence(cls.equation)}"
    yield ""
    if not cls.listed:
        yield "- other methods need it; it has no row of its own"
    elif not cls.in_default_grid:
        yield "- runs only if `--methods` names it"
    if cls.remark:
        yield f"- {cls.remark}"
    yield f"- needs: {entry.needs}"
    if with_cost:
        yield f"- {entry.facts.extra_parameters:,} extra parameters; a step costs {entry.cost} times Baseline's"
    yield f"- weights: {entry.weights}"
    yield f"- golden cases: {entry.golden}"
    if cls.name in STAGE_SCHEDULES:
        schedule = STAGE_SCHEDULES[cls.name]
        milestones = ", ".join(map(str, schedule.milestones))
        drops = f", learning rate divided after epochs {milestones}" if milestones else ""
        yield f"- its own schedule: {schedule.epochs} epochs{drops}"
    for protocol in PROTOCOLS.values():
        if own := protocol.method_options.get(cls.name):
            yield f"- under protocol {protocol.name}: {_assignments(own)}"
    for network, options in cls.network_options.items():
        yield f"- for {network}: {_assignments(options)}"
    if cls.pair_options:
        yield f"- for pairs: {_pair_settings(cls.pair_options)}"
    if base := _base_with_same_options(cls):
        fields = base.Options.model_fields
        other = {
            name: field.default
            for name, field in cls.Options.model_fields.items()
            if field.default != fields[name].default
        }
        defaults = f", but {_assignments(other)} by default" if other else ""
        yield f"- options: those of [{_cell(base.name)}](#{_anchor(base.name)}){defaults}"
    elif cls.Options.model_fields:
        yield ""
        yield "| option | default | allowed | what it is |"
        yield "|---|---|---|---|"
        for name, field in cls.Options.model_fields.items():
            default = "none" if field.default is None else field.default
            yield f"| `{name}` | {default} | {_allowed(cls, name)} | {_cell(field.description or '')} |"
    if finding := FINDINGS.get(cls.name):
        yield ""
        yield finding
    if cls.differences:
        yield ""
        yield "| subject | paper | public code | here |"
        yield "|---|---|---|---|"
        for subject, sources in cls.differences.items():
            yield f"| {' | '.join(map(_cell, (subject, *sources)))} |"


def describe_in_full(entry: MethodEntry) -> str:
    """Write all that the page of methods says of one, in Markdown, without its heading and without links."""
    return re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", "\n".join([*_section(entry)][3:]))


def _base_with_same_options(cls: type[Method]) -> type[Method] | None:
    """The method that this one is derived from, if their options differ in nothing but the defaults."""
    names = cls.Options.model_fields.keys()
    for base in all_methods().values():
        if base in cls.__mro__[1:] and base.Options.model_fields.keys() == names:
            return base if all(_allowed(cls, name) == _allowed(base, name) for name in names) else None
    return None


def _allowed(cls: type[Method], name: str) -> str:
    schema = cls.Options.model_json_schema()["properties"][name]
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
    wanted = {FACTS: content, PAGE: to_markdown(entries(facts)) + "\n"}
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
