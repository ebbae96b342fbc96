"""Overrides from the command line: `--set METHOD.option=VALUE` and `--set protocol.field=VALUE`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from benchmark.backbones import check_network
from benchmark.core.errors import UserError, invalid_value, shorten, unknown_name
from benchmark.core.protocols import CHANGEABLE
from benchmark.core.spec import Protocol
from benchmark.plugins.registry import method_class, resolve_options

PROTOCOL = "protocol"
LARGEST = {"warmup_epochs": 10_000, "batch_size": 65_536}
"""The fields of a protocol that cost time or memory, and what they may be set to at most."""


def parse_pair(text: str) -> tuple[str, str]:
    """Split a pair such as `WRN-40-2>WRN-16-2` into teacher and student.

    Raises:
        UserError: the pair has another form, or names an unknown network.
    """
    teacher, arrow, student = text.partition(">")
    if not arrow:
        raise UserError(f"pair {text!r} is not of the form teacher>student, such as WRN-40-2>WRN-16-2")
    for network in (teacher, student):
        check_network(network)
    return teacher, student


def parse_value(text: str) -> Any:
    """A number, true, false or null where the text is one, else the text itself."""
    # Options are plain values: a list or an object is a text that the option refuses.
    if text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        # It is no JSON, or a number of thousands of digits.
        return text


def parse_settings(assignments: list[str], protocol: Protocol) -> tuple[Protocol, dict[str, dict[str, Any]]]:
    """Apply `protocol.field=value` assignments to a protocol, and collect `METHOD.option=value` ones by method.

    Raises:
        UserError: an assignment is malformed, a method, option or field is unknown, or a value is out of range.
    """
    reject_duplicate_overrides(assignments)
    own = f"{PROTOCOL}."
    changes = [assignment.removeprefix(own) for assignment in assignments if assignment.startswith(own)]
    protocol = _changed_protocol(changes, protocol)
    return protocol, parse_method_options([text for text in assignments if not text.startswith(own)], protocol)


def reject_duplicate_overrides(assignments: Sequence[str]) -> None:
    """Refuse assignments that give one field two values.

    Raises:
        UserError: a field has two values.
    """
    texts: dict[str, str] = {}
    for assignment in assignments:
        field, _, text = assignment.partition("=")
        before = texts.setdefault(field, text)
        if parse_value(before) != parse_value(text):
            raise UserError(f"--set gives {field} twice, as {before} and as {text}; give it once")


def reject_unused_overrides(assignments: Sequence[str], methods: Iterable[str]) -> None:
    """Refuse options of methods that are not planned; methods: those of the planned runs.

    Raises:
        UserError: an assignment changes nothing.
    """
    planned = list(dict.fromkeys(methods))
    for assignment in assignments:
        method = assignment.partition("=")[0].rpartition(".")[0]
        if method not in (PROTOCOL, *planned):
            raise UserError(
                f"--set {assignment} changes nothing: no run of this command is of {method}, only of "
                f"{', '.join(planned)}; choose {method} with --methods, or leave the --set out"
            )


def _check_truth(what: str, field: str, value: Any, kind: Any) -> None:
    """Refuse true and false as the value of a number, which pydantic would accept."""
    if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
        raise UserError(
            f"{what}: {field} = {json.dumps(value)} is refused: a value other than true or false belongs there"
        )


def _changed_protocol(assignments: list[str], protocol: Protocol) -> Protocol:
    changes = {}
    for assignment in assignments:
        field, _, text = assignment.partition("=")
        if field not in CHANGEABLE:
            raise unknown_name("field of the protocol", field, CHANGEABLE)
        changes[field] = parse_value(text)
        _check_truth(f"protocol {protocol.name}", field, changes[field], Protocol.model_fields[field].annotation)
    try:
        changed = Protocol.model_validate(protocol.model_dump() | changes)
    except ValidationError as error:
        raise invalid_value(f"protocol {protocol.name}", error) from None
    for field, largest in LARGEST.items():
        if field in changes and (given := getattr(changed, field)) > largest:
            given = shorten(str(given))
            raise UserError(f"protocol {protocol.name}: {field} = {given} is refused: at most {largest:,} is allowed")
    return changed


def parse_method_options(assignments: list[str], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Collect `METHOD.option=value` assignments by method, and check each against the method's options.

    Raises:
        UserError: an assignment is malformed, a method or option is unknown, or a value is out of range.
    """
    chosen: dict[str, dict[str, Any]] = defaultdict(dict)
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        method, dot, option = target.rpartition(".")
        if not (equals and dot and method and option):
            raise UserError(f"--set {assignment!r} is not of the form METHOD.option=value, such as LSSKD.alpha=0.3")
        if option not in method_class(method).Options.model_fields:
            raise unknown_name(f"option of {method}", option, method_class(method).Options.model_fields)
        chosen[method][option] = parse_value(text)
        kind = method_class(method).Options.model_fields[option].annotation
        _check_truth(method, option, chosen[method][option], kind)
    for method, options in chosen.items():
        resolve_options(method_class(method), protocol, overrides=options)
    return dict(chosen)
