"""What all command lines of the suite share: parsing of lists, and errors as one line with exit code 2."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer
import typer.exceptions
from rich.console import Console

from benchmark.core.errors import UserError
from benchmark.io.untrusted import escape_control_chars

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
    line = escape_control_chars(" ".join(message.split()), most=10_000)
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


def split_names(text: str | None, option: str) -> list[str]:
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


def list_given_options(context: typer.Context) -> list[str]:
    """The options that stand on the command line, by their names there."""
    sources = {param.opts[0]: context.get_parameter_source(param.name or "") for param in context.command.params}
    return [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def format_command() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["python", "-m", "benchmark." + Path(sys.argv[0]).stem, *sys.argv[1:]])
