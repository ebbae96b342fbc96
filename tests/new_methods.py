"""A method of a user's own: a file in a folder where the registry looks, as if it lay in `methods/`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import methods
from benchmark.method.contract import Method
from benchmark.plugins import source
from benchmark.plugins.registry import all_methods, method_class

SOURCE = '''"""Logits follow logits."""

from benchmark.method.contract import Method, MethodOptions
from methods.baseline import label_loss


def distance(one, other):
    return ((one - other) ** 2).mean()


class Follower(Method):
    """Follows."""

    name = "Follow"
    paper = "None, 2024"
    equation = "L = CE + distance"
    needs_teacher = True

    class Options(MethodOptions):
        share: float = 0.5

    @property
    def weights(self):
        return {"ce": 1.0, "logits": self.options.share}

    def forward(self, step):
        logits = step.student("plain").logits
        return {"ce": label_loss(logits, step), "logits": distance(logits, step.teacher("plain").logits)}
'''
"""A whole method."""


def line_of(text: str, source: str = SOURCE) -> int:
    """The line of a file in which a text first stands, counted from 1."""
    return source[: source.index(text)].count("\n") + 1


class NewMethods:
    """A folder of methods beside the suite's own; what was imported of it is forgotten whenever a file is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, *changes: tuple[str, str], file: str = "follow.py", source: str = SOURCE) -> str:
        """Write a file of methods, each text in it that is to change once or more replaced; returns what is written."""
        for before, after in changes:
            assert before in source
            source = source.replace(before, after)
        (self.folder / file).write_text(source, encoding="utf-8")
        self.forget()
        return source

    def __call__(self, *changes: tuple[str, str]) -> type[Method]:
        """The method, written so and imported anew."""
        self.write(*changes)
        return method_class("Follow")

    def forget(self) -> None:
        """What a new process would not know."""
        all_methods.cache_clear()
        source._code_in.cache_clear()
        for name, module in list(sys.modules.items()):
            if name.startswith("methods.") and str(module.__file__).startswith(str(self.folder)):
                del sys.modules[name]


@pytest.fixture
def new_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewMethods]:
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    # A file that is written twice within the clock's step would be taken for the one that was compiled.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    new = NewMethods(folder)
    new.forget()
    yield new
    new.forget()
