"""Importing torchvision beside a torch that its compiled operators were not built for.

PyPI's torchvision is built against the CUDA build of torch. Beside a CPU-only torch its extension cannot be loaded,
and the import stops with "operator torchvision::nms does not exist": the package registers shape rules for two
detection operators that only the extension declares. None of the suite's images pass through those operators, so it
is enough to declare them. Everything here that needs torchvision imports it through `import_torchvision`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declarations: list[torch.library.Library] = []
"""Declarations last as long as the library object that made them, so it is kept for the life of the process."""


def import_torchvision(submodule: str = "") -> ModuleType:
    """Import `torchvision`, or a submodule of it (`datasets`, `transforms.functional`).

    The missing operators are declared only if the import fails because of them.

    Raises:
        ImportError, RuntimeError: torchvision cannot be imported for another reason.
    """
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if not any(f"operator torchvision::{operator} does not exist" in str(error) for operator in OPERATORS):
            raise
    declare_missing_operators()
    return importlib.import_module(name)


def declare_missing_operators() -> tuple[str, ...]:
    """Declare the operators that are missing, without an implementation, and return their names."""
    missing = tuple(name for name in OPERATORS if not hasattr(torch.ops.torchvision, name))
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(name + SCHEMA)
        _declarations.append(library)
    return missing
