"""What all command lines of the suite share: parsing of lists, and errors as one line with exit code 2."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

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
        refuse_empty(sys.argv[1:])
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


def refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an option that is given an empty value: it would mean the default, and what was meant is another thing.

    Raises:
        UserError: there is such an option.
    """
    for before, argument in itertools.pairwise(["", *arguments]):
        if argument.startswith("--") and argument.find("=") == len(argument) - 1:
            raise empty_option(argument[:-1])
        if not argument.strip() and before.startswith("--") and "=" not in before:
            raise empty_option(before)


def empty_option(option: str) -> UserError:
    """The error for an option without a value, such as an unset variable of a shell gives."""
    return UserError(f"{option} is given and empty; give it a value (--help says which), or leave {option} out")


def names(text: str | None, option: str) -> list[str]:
    """The parts of a comma-separated list that an option was given; none where it was not given (None).

    Raises:
        UserError: it was given and names nothing.
    """
    if text is None:
        return []
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise empty_option(option)
    return found


def given_options(context: typer.Context) -> list[str]:
    """The options that stand on the command line, by their names there."""
    sources = {param.opts[0]: context.get_parameter_source(param.name or "") for param in context.command.params}
    return [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


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
    check_said_once(assignments)
    own = f"{PROTOCOL}."
    changes = [assignment.removeprefix(own) for assignment in assignments if assignment.startswith(own)]
    protocol = _changed_protocol(changes, protocol)
    return protocol, method_options([text for text in assignments if not text.startswith(own)], protocol)


def check_said_once(assignments: Sequence[str]) -> None:
    """Refuse assignments that give one field two values.

    Raises:
        UserError: there are such.
    """
    said: dict[str, str] = {}
    for assignment in assignments:
        field, _, text = assignment.partition("=")
        before = said.setdefault(field, text)
        if value_of(before) != value_of(text):
            raise UserError(f"--set gives {field} twice, as {before} and as {text}; give it once")


def check_set(assignments: Sequence[str], methods: Iterable[str]) -> None:
    """Refuse options of methods that no planned run is of; methods: those of the planned runs.

    Raises:
        UserError: there are such.
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
    """Refuse true and false where a number belongs, which they would be taken for."""
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
        changes[field] = value_of(text)
        _check_truth(f"protocol {protocol.name}", field, changes[field], Protocol.model_fields[field].annotation)
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
        kind = method_class(method).Options.model_fields[option].annotation
        _check_truth(method, option, chosen[method][option], kind)
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


def command() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["python", "-m", "benchmark." + Path(sys.argv[0]).stem, *sys.argv[1:]])
