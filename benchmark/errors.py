"""Errors a user can mend: one line that says what was wrong, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


class UserError(Exception):
    """Raised where a user's input enters; the command line prints it as one line and exits with code 2."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `name`, whatever its case; None where none is near."""
    by_lower_case = {candidate.lower(): candidate for candidate in allowed}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=len(by_lower_case) or 1, cutoff=0.4)

    def likeness(candidate: str) -> tuple[float, int]:
        # Equally like ones go by how they begin: of ResNet32 and ResNet20, the latter is nearer to ResNet21.
        matcher = difflib.SequenceMatcher(None, candidate, name.lower())
        first = matcher.get_matching_blocks()[0]
        return matcher.ratio(), first.size if first.a == first.b == 0 else 0

    return by_lower_case[max(near, key=likeness)] if near else None


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name nobody registered: the name, the nearest allowed one, and all allowed ones."""
    names = list(allowed)
    near = nearest(name, names)
    hint = f" (did you mean {near!r}?)" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint}; allowed: {', '.join(names)}")


def invalid_value(what: str, error: ValidationError, allowed: Iterable[str] = ()) -> UserError:
    """The first complaint of a validation as one line; `allowed` names the fields that exist."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_name(f"option of {what}", field, allowed)
    message = first["msg"][0].lower() + first["msg"][1:]
    return UserError(f"{what}: {field} = {first['input']!r} is refused: {message}")
