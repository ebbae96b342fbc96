"""The documents of the repository, for the tests of what they say."""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import methods
from benchmark.plugins.registry import all_methods

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")})
README = ROOT / "README.md"
QUICKSTART = ROOT / "docs" / "quickstart.md"
USAGE = ROOT / "docs" / "usage.md"
OWN_FILES = ROOT / "docs" / "own-files.md"


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """The module and the arguments of every command of the suite in a document's indented and inline code."""
    text = document.read_text(encoding="utf-8")
    module = r"python -m\s+((?:benchmark|slurm)(?:\.\w+)+)"
    found = re.findall(rf"^    {module}(.*)$|`{module}([^`]*)`", text, flags=re.MULTILINE)
    return [(shown or inline, shlex.split(rest or more, comments=True)) for shown, rest, inline, more in found]


@contextlib.contextmanager
def example_method(folder: Path) -> Iterator[Any]:
    """The module of the quickstart's method, in a folder where the registry finds it as if it lay in `methods/`."""
    (code,) = [block for block in blocks(QUICKSTART, "python") if "(Method)" in block]
    (folder / "methods").mkdir()
    (folder / "methods" / "logits.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "__path__", [str(folder / "methods"), *methods.__path__])
        patch.delitem(sys.modules, "methods.logits", raising=False)
        all_methods.cache_clear()
        yield importlib.import_module(all_methods()["Logits"].__module__)
        sys.modules.pop("methods.logits")
    all_methods.cache_clear()


def table_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, its header row first."""
    section = text.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(^\|.*\|\n)+", section, flags=re.MULTILINE)
    assert rows, f"no table under {heading!r}"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.group().splitlines()]
    return [cells[0], *cells[2:]]
