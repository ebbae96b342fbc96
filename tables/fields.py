"""What the TOML files of tables and figures have in common: their fields, and how one that is refused is told of."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from benchmark.errors import UserError, nearest, unknown_name
from benchmark.foreign import Refused, bounded_text, check_strings
from benchmark.protocols import SCALES

LARGEST = 2**20
"""Bytes of a TOML file."""

Name = Annotated[str, Field(min_length=1)]
Model = TypeVar("Model", bound=BaseModel)


class Frozen(BaseModel):
    """A part of a file: what it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def file_name(value: str) -> str:
    """A name that is part of the names of files.

    Raises:
        ValueError: it cannot be.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("it names files; allowed: letters, digits, '.', '_' and '-', the first a letter or a digit")
    return value


def known_scales(scales: Iterable[str]) -> None:
    """Refuse a scale that is not there.

    Raises:
        ValueError: it is not there.
    """
    for scale in scales:
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}; allowed: {', '.join(SCALES)}")


def located_datasets(value: Any, info: ValidationInfo) -> Any:
    """A dataset's name or path, or one for each scale, with paths made relative to the file's folder.

    Raises:
        ValueError: it is none of these.
    """
    entries = value if isinstance(value, Mapping) else {"any scale": value}
    if not entries or not all(isinstance(entry, str) and entry for entry in entries.values()):
        raise ValueError(f"allowed: a name or a path, or one for some of the scales {', '.join(SCALES)}")
    if isinstance(value, Mapping):
        known_scales(value)
    folder = (info.context or {}).get("folder", Path())
    located = {scale: str(folder / entry) if entry.endswith(".toml") else entry for scale, entry in entries.items()}
    return located if isinstance(value, Mapping) else located["any scale"]


def names_in(folder: Path, kind: str) -> list[str]:
    """The names of the files `<kind>_<name>.toml` in a folder."""
    return sorted(path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.toml"))


def load(
    folder: Path,
    kind: str,
    name_or_path: str | Path,
    model: type[Model],
    owners: Mapping[int | str, type[BaseModel]],
    example: str,
) -> Model:
    """What the file of a name (`II` or `table_II`) in a folder says, or the TOML file at a path.

    kind: what it is, in words and in the files' names; owners: the models of its parts, by the name of the field that
    holds them; example: a file that shows the format.

    Raises:
        UserError: there is none of that name, the file cannot be read, or a field is missing, unknown or refused.
    """
    known, name, path = names_in(folder, kind), str(name_or_path).removeprefix(f"{kind}_"), Path(name_or_path)
    if name in known:
        path = folder / f"{kind}_{name}.toml"
    elif path.suffix != ".toml" and not path.is_file():
        raise unknown_name(kind, str(name_or_path), [*known, "the path of a TOML file"])
    try:
        content = tomllib.loads(bounded_text(path, LARGEST))
        check_strings(content)
    except OSError as error:
        raise UserError(f"{kind} file {path} cannot be read: {error.strerror}; check the path") from error
    except Refused as refusal:
        raise UserError(f"{kind} file {path} {refusal}; {example} shows the format") from refusal
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{kind} file {path} is no valid TOML in UTF-8: {reason}; {example} shows the format"
        ) from error
    try:
        return model.model_validate(content, context={"folder": path.parent})
    except ValidationError as error:
        raise UserError(f"{kind} file {path}: {_complaint(error, model, owners, example)}") from None


def _complaint(
    error: ValidationError, whole: type[BaseModel], owners: Mapping[int | str, type[BaseModel]], example: str
) -> str:
    """The first complaint of a validation in one line: the field, what is wrong, and what is allowed.

    whole: the model of the file; owners: the models of its parts, by the name of the field that holds them.
    """
    found = error.errors()
    # A misspelt field is also a missing one; the misspelling is what the user wants to hear of.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    parts = first["loc"]
    place = re.sub(r"\.(\d+)", lambda index: f"[{int(index[1]) + 1}]", ".".join(str(part) for part in parts))
    if first["type"] == "extra_forbidden":
        owner = next((owners[part] for part in reversed(parts[:-1]) if part in owners), whole)
        near = nearest(str(parts[-1]), owner.model_fields)
        hint = f" (did you mean {near!r}?)" if near else ""
        return f"unknown field {place!r}{hint}; allowed: {', '.join(owner.model_fields)}"
    if first["type"] == "missing":
        return f"field {place!r} is missing; add it ({example} shows the format)"
    message = first["msg"].removeprefix("Value error, ")
    if not place:
        return message
    given = " ".join(repr(first["input"]).split())
    given = given if len(given) <= 60 else f"{given[:57]}..."
    return f"field {place!r} = {given} is refused: {message[:1].lower()}{message[1:]}"
