"""Errors a user can mend: one line that says what was wrong, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Raised where a user's input enters; the command line prints it as one line and exits with code 2."""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name nobody registered: the name, the nearest allowed one, and all allowed ones."""
    names = list(allowed)
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.4)
    nearest = f"; did you mean {by_lower_case[near[0]]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}{nearest} Allowed: {', '.join(names)}" if nearest else f"unknown {kind} {name!r}. Allowed: {', '.join(names)}")
