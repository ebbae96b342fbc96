"""Errors that a user can correct: one line that says what is wrong, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

LONGEST = 60
"""Characters of a value that is shown in a message."""


class UserError(Exception):
    """Input that a user must correct; the command line prints it as one line and exits with code 2."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Find the allowed name most like `name`, ignoring case; None if none is similar."""
    by_lower_case = {candidate.lower(): candidate for candidate in allowed}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=len(by_lower_case) or 1, cutoff=0.4)

    def likeness(candidate: str) -> tuple[float, int]:
        # Of equally similar names the one with the longer common start wins: ResNet20, not ResNet32, for ResNet21.
        matcher = difflib.SequenceMatcher(None, candidate, name.lower())
        first = matcher.get_matching_blocks()[0]
        return matcher.ratio(), first.size if first.a == first.b == 0 else 0

    return by_lower_case[max(near, key=likeness)] if near else None


def closest(name: str, allowed: Iterable[str], most: int = 5) -> list[str]:
    """Find the allowed names most like `name`, the nearest first, for messages that cannot list all of them."""
    return difflib.get_close_matches(name, list(allowed), n=most, cutoff=0.0)


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """Make the error for an unknown name; it gives the name, the nearest allowed one, and all allowed ones."""
    names = list(allowed)
    near = nearest(name, names)
    hint = f" (did you mean {near!r}?)" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint}; allowed: {', '.join(names)}")


def invalid_value(what: str, error: ValidationError, allowed: Iterable[str] = ()) -> UserError:
    """Make the error for the first complaint of a validation; `allowed`: the names of the fields that exist."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_name(f"option of {what}", field, allowed)
    if not field:
        return UserError(f"{what}: {reason_of(first)}")
    return UserError(f"{what}: {field} = {refused_value(first)}")


def shorten(text: str, most: int = LONGEST) -> str:
    """Cut a text that is too long for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def refused_value(complaint: ErrorDetails) -> str:
    """Describe a refused value: `3 is refused: input should be a valid string`."""
    given = shorten(" ".join(repr(complaint["input"]).split()))
    return f"{given} is refused: {reason_of(complaint)}"


def reason_of(complaint: ErrorDetails) -> str:
    """Write the reason of a validation as part of a sentence."""
    message = complaint["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{message[:1].lower()}{message[1:]}"
