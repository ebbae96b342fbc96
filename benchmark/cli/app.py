"""What all command lines of the suite share: parsing of lists, and errors as one line with exit code 2."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import typer
import typer.exceptions
from rich.console import Console

from benchmark.cli.terminal import prepare_output
from benchmark.core.errors import UserError
from benchmark.io.untrusted import escape_control_chars

BAD_INPUT = 2
INTERRUPTED = 130
LONGEST_WORD = 240
"""Characters of a path, a name or a value that a message shows; of a longer one, it shows both ends."""


def make_app(main: Callable[..., int]) -> typer.Typer:
    """Make a command line of a function: its parameters are the options, and it returns the exit code."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    return app


def run_app(main: Callable[..., int], program: str) -> NoReturn:
    """Run a function as a command line; an error that the user can correct is one line, with exit code 2."""
    prepare_output()
    try:
        refuse_unusable(sys.argv[1:])
        code = make_app(main)(prog_name=program, standalone_mode=False)
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
        # The reader of the output has gone.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        code = 1
    except OSError as error:
        code = refuse(describe_os_error(error, sys.argv[1:]))
    except UnicodeEncodeError as error:
        code = refuse(f"{error.object!r} cannot be a file's name in the encoding of this system; set PYTHONUTF8=1")
    sys.exit(code or 0)


def refuse(message: str) -> int:
    """Print one line on the error output; returns the exit code for bad input."""
    # A message may hold names and contents of files; a terminal must not take them for commands.
    words = [shorten(word) for word in message.split()]
    line = escape_control_chars(" ".join(words), most=10_000)
    Console(stderr=True, highlight=False).print(f"error: {line}", markup=False, soft_wrap=True)
    return BAD_INPUT


def shorten(word: str) -> str:
    """Cut the middle out of a path, a name or a value that would fill the screen."""
    half = LONGEST_WORD // 3
    return word if len(word) <= LONGEST_WORD else f"{word[:half]}...{word[-half:]}"


def describe_os_error(error: OSError, arguments: Sequence[str]) -> str:
    """Describe what the system refused, and which argument named the path. It is for paths that no check has seen."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"the system refused to go on: {reason}"
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    words = [word for argument in arguments for word in argument.split("=", 1 if argument.startswith("--") else 0)]
    option = next((before for before, word in itertools.pairwise(["", *words]) if _names(word, path)), "")
    source = f" (from {option})" if option.startswith("--") else ""
    return f"{path}{source} cannot be used: {reason}; name another path, or make this one accessible"


def _names(word: str, path: str) -> bool:
    """Whether an argument, which may be of the form NETWORK=FILE, gives a path or a folder on its way."""
    given = word.rpartition("=")[2]
    return bool(given) and (path == given or path.startswith(f"{given.rstrip('/')}/"))


def refuse_unusable(arguments: Sequence[str]) -> None:
    """Refuse an argument with a zero byte, and an option with an empty value, which would silently mean the default.

    Raises:
        UserError: there is such an argument.
    """
    for before, argument in itertools.pairwise(["", *arguments]):
        if "\0" in argument:
            raise UserError(f"the argument {argument!r} has a zero byte, which no path and no name may have; remove it")
        if argument.startswith("--") and argument.find("=") == len(argument) - 1:
            raise empty_option(argument[:-1])
        if not argument.strip() and before.startswith("--") and "=" not in before:
            raise empty_option(before)


def empty_option(option: str) -> UserError:
    """The error for an option without a value, which an unset variable of a shell can cause."""
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
