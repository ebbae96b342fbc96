"""Finds the methods in the files of `methods/`, and resolves their options."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, get_args

from pydantic import ValidationError

import methods
from benchmark.core.errors import UserError, invalid_value, unknown_name
from benchmark.core.spec import Protocol
from benchmark.method.contract import Method, MethodOptions, View
from benchmark.plugins.source import describe_error, locate, locate_class, locate_line

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9*+.-]{0,59}")
"""The form of a method's name, which is part of the names of folders and files."""


@functools.cache
def all_methods() -> dict[str, type[Method]]:
    """Find every method by name, helpers of other methods (`listed` False) included.

    Raises:
        UserError: a file of methods cannot be imported, a class in it is no whole method, two have one name.
    """
    found: dict[str, type[Method]] = {}
    for module_info in pkgutil.iter_modules(methods.__path__, "methods."):
        module = _imported(module_info)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                _check_class(value)
                other = found.setdefault(value.name, value)
                if other is not value:
                    raise UserError(
                        f"{locate_class(value, 'name')}: the name {value.name!r} is also that of "
                        f"{locate_class(other, 'name')}; give one of the two another name"
                    )
    return dict(sorted(found.items()))


def _imported(module_info: pkgutil.ModuleInfo) -> ModuleType:
    """Import a module of methods.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(module_info.name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        where, what = locate(error), describe_error(error)
        if isinstance(error, SyntaxError) and error.filename:
            where, what = locate_line(error.filename, error.lineno), f"{type(error).__name__}: {error.msg}"
        where = where or f"{module_info.name.replace('.', '/')}.py"
        raise UserError(f"{where}: {what}; mend the file, or take it out of methods/") from error


def _check_class(cls: type[Method]) -> None:
    """Refuse a method that lacks what all methods have.

    Raises:
        UserError: see above; it names the place in the method's file.
    """

    def refused(attribute: str, what: str) -> UserError:
        return UserError(f"{locate_class(cls, attribute)}: class {cls.__name__} {what}")

    if "name" not in vars(cls):
        raise refused("name", 'has no name of its own; write name = "..." in it')
    if not isinstance(cls.name, str) or not NAME.fullmatch(cls.name):
        raise refused(
            "name",
            f"has the name {cls.name!r}, which could not be part of a file's name; use letters and digits, and after "
            "the first one also - * + . (60 characters at most)",
        )
    for attribute in ("paper", "equation"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise refused(attribute, f'does not tell its {attribute}; write {attribute} = "..." in it')
    for attribute in ("weights", "forward"):
        if getattr(cls, attribute) is getattr(Method, attribute):
            raise refused(attribute, f"has no {attribute}; benchmark/method/contract.py tells what it is")
    if not isinstance(cls.version, int) or cls.version < 1:
        raise refused("version", f"has the version {cls.version!r}; use 1, 2, 3 and so on")
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, MethodOptions)):
        raise refused("Options", "has Options that are no MethodOptions; write class Options(MethodOptions)")
    for pair in cls.pair_options:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(network, str) for network in pair)):
            raise refused("pair_options", f"has pair_options for {pair!r}; write (teacher, student), two names")
    if cls.view not in get_args(View):
        raise refused("view", f"has the view {cls.view!r}; allowed: {', '.join(get_args(View))}")


def method_names() -> list[str]:
    """List the names of methods that a user may ask for as rows."""
    return [name for name, method in all_methods().items() if method.listed]


def method_class(name: str) -> type[Method]:
    """Get the method of a name.

    Raises:
        UserError: there is none.
    """
    if name not in all_methods():
        raise unknown_name("method", name, method_names())
    return all_methods()[name]


def resolve_options(
    method: type[Method],
    protocol: Protocol,
    student: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    teacher: str | None = None,
) -> MethodOptions:
    """Resolve a method's options: its defaults, those for the student's network, the pair and the protocol, the user's.

    If two of them set an option, the later one counts. student, teacher: names of networks.

    Raises:
        UserError: an option is unknown or its value is out of range.
    """
    chosen = {
        **method.network_options.get(student or "", {}),
        **method.pair_options.get((teacher or "", student or ""), {}),
        **protocol.method_options.get(method.name, {}),
        **(overrides or {}),
    }
    try:
        return method.Options(**chosen)
    except ValidationError as error:
        raise invalid_value(method.name, error, method.Options.model_fields) from None
