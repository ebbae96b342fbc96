"""Check and find the TOML files of tables and figures: what both kinds have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from benchmark.core.errors import UserError, unknown_name
from benchmark.core.protocols import PROTOCOLS, SCALES
from benchmark.io.toml import Model, load_toml

Name = Annotated[str, Field(min_length=1)]
Scales = TypeVar("Scales", bound=Iterable[str])


def check_file_name(value: str) -> str:
    """Check a name that is part of the names of files.

    Raises:
        ValueError: it cannot be.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("it names files; allowed: letters, digits, '.', '_' and '-', the first a letter or a digit")
    return value


def check_once(kind: str, entries: Sequence[str]) -> None:
    """Check that each entry stands there once.

    Raises:
        ValueError: one stands there twice.
    """
    if repeated := [entry for entry in entries if entries.count(entry) > 1]:
        raise ValueError(f"{kind}: {repeated[0]!r} stands there twice; allowed: once")


def check_count(what: str, numbers: Sequence[float], count: int, place: str) -> None:
    """Check that there is a number for each place, or none at all.

    Raises:
        ValueError: there are too few or too many.
    """
    if numbers and len(numbers) != count:
        raise ValueError(
            f"{what}: {len(numbers)} given; allowed: {count}, one for each {place}, nan where there is none"
        )


def check_scales(scales: Scales) -> Scales:
    """Check the names of scales, or what is given by scale.

    Raises:
        ValueError: a scale is unknown.
    """
    for scale in scales:
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}; allowed: {', '.join(SCALES)}")
    return scales


def check_protocols(protocols: str | dict[str, str]) -> str | dict[str, str]:
    """Check the name of a protocol, or one for each scale.

    Raises:
        ValueError: there is no such protocol or scale.
    """
    if isinstance(protocols, dict):
        check_scales(protocols)
    for name in protocols.values() if isinstance(protocols, dict) else [protocols]:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}; allowed: {', '.join(PROTOCOLS)}")
    return protocols


def locate_datasets(value: Any, info: ValidationInfo) -> Any:
    """Check a dataset's name or path, or one for each scale, and make paths relative to the file's folder.

    Raises:
        ValueError: it is none of these.
    """
    entries = value if isinstance(value, Mapping) else {"any scale": value}
    if not entries or not all(isinstance(entry, str) and entry for entry in entries.values()):
        raise ValueError(f"allowed: a name or a path, or one for some of the scales {', '.join(SCALES)}")
    if isinstance(value, Mapping):
        check_scales(value)
    folder = (info.context or {}).get("folder", Path())
    located = {scale: str(folder / entry) if entry.endswith(".toml") else entry for scale, entry in entries.items()}
    return located if isinstance(value, Mapping) else located["any scale"]


Datasets = Annotated[Name | dict[str, Name], BeforeValidator(locate_datasets)]
"""A dataset's name or path, or one for each scale."""
Protocols = Annotated[Name | dict[Name, Name], AfterValidator(check_protocols)]
"""A protocol's name, or one for each scale."""


def choose_for_scale(entry: str | Mapping[str, str], scale: str) -> str | None:
    """Choose from one entry for all scales, or one for each; None where a scale has none."""
    return entry if isinstance(entry, str) else entry.get(scale)


def list_names(folder: Path, kind: str) -> list[str]:
    """List the names of the files `<kind>_<name>.toml` in a folder."""
    return sorted(path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.toml"))


def load_by_name(
    folder: Path,
    kind: str,
    name_or_path: str | Path,
    model: type[Model],
    example: str,
) -> Model:
    """Load the file of a name (`II` or `table_II`) in a folder, or the TOML file at a path.

    kind: what it is, in words and in the files' names; example: a file that shows the format.

    Raises:
        UserError: there is none of that name, the file cannot be read, a field is missing, unknown or refused, or the
            name is that of another one, which comes with the suite.
    """
    known, name, path = list_names(folder, kind), str(name_or_path).removeprefix(f"{kind}_"), Path(name_or_path)
    if name in known:
        path = folder / f"{kind}_{name}.toml"
    elif path.suffix != ".toml" and not path.is_file():
        raise unknown_name(kind, str(name_or_path), [*known, "the path of a TOML file"])
    loaded = load_toml(path, f"{kind} file", model, example, {"folder": path.parent})
    taken = getattr(loaded, "name", "")
    if taken in known and path.resolve().parent != folder.resolve():
        # Its reports would overwrite those of the suite's own.
        raise UserError(f"{kind} file {path}: the name {taken!r} is taken by the suite's own {kind}; choose another")
    return loaded
