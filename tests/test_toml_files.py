"""TOML files that people write: whatever is wrong with one, it is told in one line that names the place."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmark.core.errors import UserError
from benchmark.io.toml import LARGEST, load_toml


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    size: int = Field(1, ge=1)
    colour: tuple[float, float, float] | None = None

    @model_validator(mode="after")
    def _check(self) -> Part:
        if self.size > 3 and self.colour:
            raise ValueError("what is large has no colour; leave one of both out")
        return self


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str
    parts: tuple[Part, ...] = ()
    by_name: dict[str, str | Literal[False]] = Field(default_factory=dict)


def loaded(folder: Path, text: str) -> Whole:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_toml(path, "file", Whole, "docs/x.md")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "field 'title' is missing; add it (docs/x.md shows the format)"),
        ("title = 3", "field 'title' = 3 is refused: input should be a valid string"),
        ("titel = 'x'", "unknown field 'titel' (did you mean 'title'?); allowed: title, parts, by_name"),
        (
            "title = 'x'\n[[parts]]\nnaem = 'y'",
            "unknown field 'parts[1].naem' (did you mean 'name'?); allowed: name, size",
        ),
        ("title = 'x'\nparts = [{ name = 'y' }, { size = 2 }]", "field 'parts[2].name' is missing"),
        ("title = 'x'\nparts = [{ name = 'y', colour = [1.0] }]", "field 'parts[1].colour[2]' is missing"),
        (
            "title = 'x'\nparts = [{ name = 'y', size = 4, colour = [1, 1, 1] }]",
            "parts[1]: what is large has no colour; leave one of both out",
        ),
        (
            "title = 'x'\nby_name = { a = 'b', c = true }",
            "field 'by_name.c' = True is refused: input should be a valid",
        ),
        ("title = ", "is no valid TOML in UTF-8: "),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        loaded(tmp_path, text)
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"file {tmp_path / 'mine.toml'}")


VALUES = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.floats(0, 5) | st.text("ab\n'", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "size", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FILES = st.dictionaries(st.sampled_from(["title", "parts", "by_name", "x"]), VALUES, max_size=4)


def as_toml(value: Any) -> str:
    """A value as TOML writes it within a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


@settings(max_examples=150, deadline=None)
@given(FILES)
def test_no_content_does_worse_than_be_refused_in_one_line(content: dict[str, Any]) -> None:
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded(Path(folder), "\n".join(f"{key} = {as_toml(value)}" for key, value in content.items()))
        except UserError as error:
            said = str(error)
    assert "\n" not in said
    assert "alue error" not in said


HOSTILE = {
    "a name of 3,000 dots": ".".join("a" * 3000) + " = 1",
    "a quoted name of 3,000 dots": " . ".join(['"a"'] * 3000) + " = 1",
    "a header of 3,000 dots": f"[{'.'.join('a' * 3000)}]",
    "headers as deep as is allowed": "".join(f"[{'.'.join('abcdefghijklmn')}.k{i}]\n" for i in range(20_000)),
    "many names": "".join(f"k{i} = 1\n" for i in range(80_000)),
    "many refused values": "title = 'x'\n[by_name]\n" + "".join(f"k{i} = 1\n" for i in range(80_000)),
    "many parts": "[[parts]]\n" * 100_000,
    "a deep list": f"a = {'[' * 100_000}{']' * 100_000}",
    "a deep table": f"a = {'{a=' * 100_000}1{'}' * 100_000}",
    "a long list": f"a = [{'1,' * 500_000}]",
    "a long number": f"title = {'1' * 1_000_000}",
    "a long number in hexadecimal": f"title = 0x{'f' * 1_000_000}",
    "a long name": f"{'a' * 1_000_000} = 1",
    "a long text": f"title = '{'a' * 1_000_000}'",
    "a text without end": 'title = """' + '\\"""' * 250_000,
    "quotes only": '"' * 1_000_000,
    "dots only": "." * 1_000_000,
    "a file beyond the largest": "#" * (LARGEST + 1),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_in_one_line_and_in_seconds(tmp_path: Path, text: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError) as refused:
        loaded(tmp_path, text)
    assert time.process_time() - started < 10
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_dots_and_brackets_in_texts_and_comments_do_not_count(tmp_path: Path) -> None:
    many = "." * 100 + "[" * 100 + "1" * 500
    text = f"title = '''{many}''' # {many}\n[by_name]\n\"{many}\" = \"{many} \\\" {many}\"\n"
    assert loaded(tmp_path, text).by_name == {many: f'{many} " {many}'}
