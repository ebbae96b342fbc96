"""TOML files that people write: read within bounds, checked against a model, and refused in one line that says why."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from benchmark.core.errors import UserError, nearest, reason_of, refused_value
from benchmark.io.untrusted import UntrustedInputError, check_depth, check_strings, read_text_limited

LARGEST = 2**20
"""Bytes of a file."""
MOST_DOTS = 16
"""In one name. The parser's time grows with the square of them."""
MOST_DIGITS = 400
"""Of one number."""

Model = TypeVar("Model", bound=BaseModel)
_STRING_OR_COMMENT = re.compile(
    r"""
    "{3}(?:[^"\\]|\\.|"(?!"{2}))*+(?:"{3}|\Z)
    | '{3}(?:[^']|'(?!'{2}))*+(?:'{3}|\Z)
    | "(?:[^"\\\n]|\\.)*+"
    | '[^'\n]*+'
    | \#[^\n]*+
    """,
    re.VERBOSE | re.DOTALL,
)
_DOTTED_NAME = re.compile(rf"(?:\.[ \t]*+[\w\"-]*+[ \t]*+){{{MOST_DOTS + 1}}}")
_LONG_NUMBER = re.compile(rf"\b\d\w{{{MOST_DIGITS}}}")

TomlPath = tuple[int | str, ...]
"""Where something stands in a file, from the outermost name to the innermost."""


def load_toml(
    path: Path,
    what: str,
    model: type[Model],
    example: str,
    context: Mapping[str, Any] | None = None,
    named: Callable[[dict[str, Any], TomlPath], str] | None = None,
) -> Model:
    """Read a TOML file into a model.

    what: the kind of file, in words; example: a file or page that shows the format; context: for the model's
    validators; named: gives the name of the part at a place, which a message puts before the refused field.

    Raises:
        UserError: it is no plain file, too large, no TOML, or a field is missing, unknown or refused.
    """
    content = _read(path, what, example)
    try:
        return model.model_validate(content, context=context)
    except ValidationError as error:
        # A misspelt field is also a missing one; the misspelling is what the user wants to hear of.
        first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
        place = _known_place(first, content)
        name = named(content, place) if named else ""
        raise UserError(f"{what} {path}: {name}{_complaint(first, place, model, example)}") from None
    except UserError as error:
        raise UserError(f"{what} {path}: {error}") from None


def _read(path: Path, what: str, example: str) -> dict[str, Any]:
    try:
        text = read_text_limited(path, LARGEST)
        _check_structure(text)
        content = tomllib.loads(text)
        check_strings(content)
    except OSError as error:
        advice = f"check the path ({example} shows the format)"
        raise UserError(f"{what} {path} cannot be read: {error.strerror or error}; {advice}") from error
    except UntrustedInputError as refusal:
        raise UserError(f"{what} {path} {refusal}; {example} shows the format") from refusal
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} {path} is no valid TOML in UTF-8: {reason}; {example} shows the format") from error
    return content


def _check_structure(text: str) -> None:
    """Count the dots of names, the digits of numbers and the depth of brackets before the file is parsed.

    Raises:
        UntrustedInputError: there are too many.
    """
    bare = _STRING_OR_COMMENT.sub(lambda found: "" if found[0].startswith("#") else '""', text)
    if _DOTTED_NAME.search(bare):
        raise UntrustedInputError(f"has a name of more than {MOST_DOTS} dots")
    if _LONG_NUMBER.search(bare):
        raise UntrustedInputError(f"has a number of more than {MOST_DIGITS} digits")
    check_depth(bare)


def _known_place(complaint: ErrorDetails, content: Any) -> TomlPath:
    """The place that a complaint is about. pydantic also names alternatives of a type, which the file does not have."""
    place: list[int | str] = []
    for part in complaint["loc"]:
        is_entry = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if is_entry or (isinstance(content, dict) and part in content):
            content = content[part]
            place.append(part)
    return (*place, complaint["loc"][-1]) if complaint["type"] == "missing" else tuple(place)


def _complaint(first: ErrorDetails, place: TomlPath, whole: type[BaseModel], example: str) -> str:
    """What is wrong: the field, what was given, and what is allowed."""
    owners = _find_parts(whole)
    name = re.sub(r"\.(\d+)", lambda index: f"[{int(index[1]) + 1}]", ".".join(str(part) for part in place))
    if first["type"] == "extra_forbidden":
        owner = next((owners[part] for part in reversed(place[:-1]) if part in owners), whole)
        near = nearest(str(place[-1]), owner.model_fields)
        hint = f" (did you mean {near!r}?)" if near else ""
        return f"unknown field {name!r}{hint}; allowed: {', '.join(owner.model_fields)}"
    if first["type"] == "missing":
        return f"field {name!r} is missing; add it ({example} shows the format)"
    is_part = not place or any(part in owners for part in place[-2:])
    if is_part and first["type"] == "value_error" and isinstance(first["input"], dict):
        # Of a part as a whole, the reason says which of its fields do not go together.
        return f"{name}: {reason_of(first)}" if place else reason_of(first)
    return f"field {name!r} = {refused_value(first)}"


def _find_parts(model: type[BaseModel]) -> dict[int | str, type[BaseModel]]:
    """Find the models of a file's parts, at any depth, by the name of the field that holds them."""
    found: dict[int | str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        annotations: list[Any] = [field.annotation]
        for annotation in annotations:
            annotations += get_args(annotation)
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found |= {name: annotation, **_find_parts(annotation)}
    return found
