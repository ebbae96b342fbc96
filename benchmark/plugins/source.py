"""The files of methods: where in one something went wrong, and a checksum of the code in it."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import methods
from benchmark.core.errors import UserError
from benchmark.io.untrusted import escape_control_chars
from benchmark.method.contract import ContractError, Method

LONGEST = 300
"""Characters of what an exception says that are shown in a line; its traceback has them all."""
DESCRIPTIONS = ("paper", "equation", "remark", "differences", "golden")
"""Attributes of a method that are for readers and decide nothing."""


def locate_line(path: str | Path, line: int | None = None) -> str:
    """A place in a file of methods, as people know it: `methods/logits.py:41`."""
    path = Path(path)
    folder = _folder_of(path)
    name = path.relative_to(folder.parent) if folder else path
    return name.as_posix() + (f":{line}" if line else "")


def _folder_of(path: Path) -> Path | None:
    """The folder of methods that a file is in; None where it is in none."""
    return next((Path(folder) for folder in methods.__path__ if path.is_relative_to(folder)), None)


def describe_error(error: BaseException) -> str:
    """An exception as part of a line: its type and what it says."""
    text = escape_control_chars(" ".join(str(error).split()), LONGEST)
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def locate(error: BaseException, own: str | None = None) -> str | None:
    """Where in the file `own` an exception was raised, or called what raised it; else where in any file of methods.

    None where it was in none of them.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [(path, line) for path, line in frames if _folder_of(Path(path))]
    inner = [(path, line) for path, line in places if path == own] or places
    return locate_line(*inner[-1]) if inner else None


def describe_failure(method: type[Method], error: BaseException) -> str:
    """What went wrong with a method, and where in its file, as part of a line."""
    said = str(error) if isinstance(error, ContractError) else f"{method.name}: {describe_error(error)}"
    where = locate(error, inspect.getfile(method))
    if where is None and isinstance(error, ContractError):
        # What `forward` has returned is found wrong when it has been left.
        code = inspect.unwrap(method.forward).__code__
        where = locate_line(code.co_filename, code.co_firstlineno)
    return f"{said} ({where})" if where else said


@contextlib.contextmanager
def user_errors(method: type[Method], what: str) -> Iterator[None]:
    """Within it, what a method raises is refused in one line. what: that cannot be done then, such as `be built`.

    Raises:
        UserError: the method raised something.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{method.name} cannot {what}: {describe_failure(method, error).removeprefix(f'{method.name}: ')}"
        ) from error


def check_weights(method: Method) -> None:
    """Refuse weights that are not numbers by the names of terms.

    Raises:
        ContractError: they are something else. Whatever the method itself raises.
    """
    own = inspect.getattr_static(type(method), "weights")
    # Asked of the module, a property that raises an AttributeError would be said not to be there.
    weights = own.fget(method) if isinstance(own, property) and own.fget else method.weights
    if not isinstance(weights, Mapping) or not all(isinstance(weight, int | float) for weight in weights.values()):
        raise ContractError(
            f"{method.name}: weights are {escape_control_chars(weights, 80)}, and must be numbers by the names of terms"
        )


def locate_class(cls: type, attribute: str | None = None) -> str:
    """Where a class is in its file, or where in it an attribute gets its value."""
    path = inspect.getfile(cls)
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(Path(path).read_bytes())):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                lines = [statement.lineno for statement in node.body if attribute in _assigned(statement)]
                return locate_line(path, lines[-1] if lines else node.lineno)
    return locate_line(path)


def _assigned(statement: ast.AST) -> list[str]:
    """The names that a statement gives values."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def fingerprint_code(method: type[Method]) -> str:
    """A sha256, in hex, of the code that a method is: of its module, and of those of the methods it is derived from.

    Comments, layout, docstrings and descriptions do not count. It is that of the files as they were when they were
    first asked for.
    """
    modules = {cls.__module__: inspect.getfile(cls) for cls in method.__mro__ if cls.__module__.startswith("methods.")}
    return hashlib.sha256("".join(map(_code_in, modules.values())).encode()).hexdigest()


@functools.cache
def _code_in(path: str) -> str:
    tree = ast.parse(Path(path).read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            leave_out = DESCRIPTIONS if isinstance(node, ast.ClassDef) else ()
            node.body = [
                statement
                for statement in node.body
                # Attributes have docstrings too.
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
                and not set(_assigned(statement)) & set(leave_out)
            ]
    return _canonical(tree)


def _canonical(node: object) -> str:
    """A syntax tree as text. What `ast.dump` makes of one depends on the version of Python."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        parts = (f"{name}={_canonical(value)}" for name, value in fields if name not in ("ctx", "kind", "type_comment"))
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)
