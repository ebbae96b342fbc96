"""Reads the source of methods: locates errors in it and computes fingerprints of it."""

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
"""Characters of an exception's message that a line shows; its traceback has all of them."""
DESCRIPTIONS = ("paper", "equation", "remark", "differences", "golden")
"""Attributes of a method that only readers use."""


def locate_line(path: str | Path, line: int | None = None) -> str:
    """Write a place in a file of methods relative to its folder: `methods/logits.py:41`."""
    path = Path(path)
    folder = _folder_of(path)
    name = path.relative_to(folder.parent) if folder else path
    return name.as_posix() + (f":{line}" if line else "")


def _folder_of(path: Path) -> Path | None:
    """Find the folder of methods that a file is in; None if it is in none."""
    return next((Path(folder) for folder in methods.__path__ if path.is_relative_to(folder)), None)


def describe_error(error: BaseException) -> str:
    """Describe an exception as part of a line: its type and its message."""
    text = escape_control_chars(" ".join(str(error).split()), LONGEST)
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def locate(error: BaseException, own: str | None = None) -> str | None:
    """Locate the innermost call of an exception in the file `own`, else in any file of methods.

    None if its traceback has no file of methods.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [(path, line) for path, line in frames if _folder_of(Path(path))]
    inner = [(path, line) for path, line in places if path == own] or places
    return locate_line(*inner[-1]) if inner else None


def describe_failure(method: type[Method], error: BaseException) -> str:
    """Describe an error of a method and its place in the file, as part of a line."""
    said = str(error) if isinstance(error, ContractError) else f"{method.name}: {describe_error(error)}"
    where = locate(error, inspect.getfile(method))
    if where is None and isinstance(error, ContractError):
        # The result of `forward` is checked after it has returned, so that the traceback does not name it.
        code = inspect.unwrap(method.forward).__code__
        where = locate_line(code.co_filename, code.co_firstlineno)
    return f"{said} ({where})" if where else said


@contextlib.contextmanager
def user_errors(method: type[Method], what: str) -> Iterator[None]:
    """Turn what a method raises within the block into one line. what: what then cannot be done, such as `be built`.

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
        ContractError: they are something else. Also raises whatever the method itself raises.
    """
    own = inspect.getattr_static(type(method), "weights")
    # nn.Module would report a property that raises an AttributeError as missing.
    weights = own.fget(method) if isinstance(own, property) and own.fget else method.weights
    if not isinstance(weights, Mapping) or not all(isinstance(weight, int | float) for weight in weights.values()):
        raise ContractError(
            f"{method.name}: weights are {escape_control_chars(weights, 80)}, and must be numbers by the names of terms"
        )


def locate_class(cls: type, attribute: str | None = None) -> str:
    """Locate a class in its file, or the place in it where an attribute gets its value."""
    path = inspect.getfile(cls)
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(Path(path).read_bytes())):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                lines = [statement.lineno for statement in node.body if attribute in _assigned(statement)]
                return locate_line(path, lines[-1] if lines else node.lineno)
    return locate_line(path)


def _assigned(statement: ast.AST) -> list[str]:
    """List the names that a statement assigns to."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def fingerprint_code(method: type[Method]) -> str:
    """Compute a sha256, in hex, of a method's code: of its module and of those of the methods it is derived from.

    Comments, layout, docstrings and descriptions do not count. The files are read once for a process.
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
    """Write a syntax tree as text. The result of `ast.dump` depends on the version of Python."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        parts = (f"{name}={_canonical(value)}" for name, value in fields if name not in ("ctx", "kind", "type_comment"))
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)
