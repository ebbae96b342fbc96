"""What all command lines of the suite share: parsing of lists, and errors as one line with exit code 2."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import typer
import typer.exceptions
from pydantic import ValidationError
from rich.console import Console

from benchmark.backbones import network_names
from benchmark.errors import UserError, invalid_value, unknown_name
from benchmark.foreign import shown
from benchmark.registry import method_class, resolve_options
from benchmark.spec import Protocol

PROTOCOL = "protocol"
CHANGEABLE = (
    "learning_rate",
    "mobile_learning_rate",
    "decay",
    "warmup_epochs",
    "batch_size",
    "momentum",
    "weight_decay",
    "nesterov",
    "rotated_crop",
)
"""The fields of a protocol that `--set protocol.FIELD=VALUE` changes."""
BAD_INPUT = 2
INTERRUPTED = 130


def run_app(app: typer.Typer, program: str) -> NoReturn:
    """Run a command line; what the user can mend is one line on the error output and exit code 2."""
    try:
        code = app(prog_name=program, standalone_mode=False)
    except UserError as error:
        code = refuse(str(error))
    except typer.exceptions.Exit as leaving:
        code = leaving.exit_code
    except typer.exceptions.TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        code = refuse(f"{message[:1].lower()}{message[1:]}; see {program} --help")
    except (KeyboardInterrupt, typer.exceptions.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Who reads the output has gone; there is nobody left to tell.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        code = 1
    sys.exit(code or 0)


def refuse(message: str) -> int:
    """Print one line on the error output; returns the exit code for bad input."""
    # Names of files and what stands in them are part of messages; a terminal must not take them for commands.
    line = shown(" ".join(message.split()), most=10_000)
    Console(stderr=True, highlight=False).print(f"error: {line}", markup=False, soft_wrap=True)
    return BAD_INPUT


def names(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_pair(text: str) -> tuple[str, str]:
    """The teacher and the student of a pair such as `WRN-40-2>WRN-16-2`.

    Raises:
        UserError: it has another form, or names a network that is not there.
    """
    teacher, arrow, student = text.partition(">")
    if not arrow:
        raise UserError(f"pair {text!r} is not of the form teacher>student, such as WRN-40-2>WRN-16-2")
    for network in (teacher, student):
        if network not in network_names():
            raise unknown_name("network", network, network_names())
    return teacher, student


def value_of(text: str) -> Any:
    """A number, true/false/null where the text is one, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_settings(assignments: list[str], protocol: Protocol) -> tuple[Protocol, dict[str, dict[str, Any]]]:
    """`METHOD.option=value` and `protocol.field=value` assignments: the protocol so changed, and options by method.

    Raises:
        UserError: a malformed assignment, an unknown method, option or field, a value out of range.
    """
    own = f"{PROTOCOL}."
    changes = [assignment.removeprefix(own) for assignment in assignments if assignment.startswith(own)]
    protocol = _changed_protocol(changes, protocol)
    return protocol, method_options([text for text in assignments if not text.startswith(own)], protocol)


def _changed_protocol(assignments: list[str], protocol: Protocol) -> Protocol:
    changes = {}
    for assignment in assignments:
        field, _, text = assignment.partition("=")
        if field not in CHANGEABLE:
            raise unknown_name("field of the protocol", field, CHANGEABLE)
        changes[field] = value_of(text)
    try:
        return Protocol.model_validate(protocol.model_dump() | changes)
    except ValidationError as error:
        raise invalid_value(f"protocol {protocol.name}", error) from None


def method_options(assignments: list[str], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """`METHOD.option=value` assignments by method, each checked against the method's options.

    Raises:
        UserError: a malformed assignment, an unknown method or option, a value out of range.
    """
    chosen: dict[str, dict[str, Any]] = defaultdict(dict)
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        method, dot, option = target.rpartition(".")
        if not (equals and dot and method and option):
            raise UserError(f"--set {assignment!r} is not of the form METHOD.option=value, such as LSSKD.alpha=0.3")
        if option not in method_class(method).Options.model_fields:
            raise unknown_name(f"option of {method}", option, method_class(method).Options.model_fields)
        chosen[method][option] = value_of(text)
    for method, options in chosen.items():
        resolve_options(method_class(method), protocol, overrides=options)
    return dict(chosen)


def assigned_files(assignments: list[str], option: str) -> dict[str, Path]:
    """`NAME=FILE` assignments as paths by name.

    Raises:
        UserError: a malformed assignment, or a name that has two files.
    """
    files = {}
    for assignment in assignments:
        name, equals, path = assignment.partition("=")
        if not (equals and name and path):
            raise UserError(f"{option} {assignment!r} is not of the form NETWORK=FILE, such as WRN-40-2=teacher.pth")
        if name in files:
            raise UserError(f"{option} names a file for {name} twice; give one")
        files[name] = Path(path)
    return files


def processors() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["python", "-m", "benchmark." + Path(sys.argv[0]).stem, *sys.argv[1:]])
