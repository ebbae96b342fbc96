"""Write a trained student for a small device: `python -m benchmark.export RUN --onnx`.

The student, without whatever trained it, becomes two ONNX files, in float32 and in int8. They are checked against the
network that was trained, counted against the network of that name, and measured on this processor (docs/export.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load_edge"]


def load_edge(folder: Path) -> dict[str, Any] | None:
    """Read the figures of an exported run from its folder; None if it was not exported, or was trained again since.

    Raises:
        UserError: the file of figures, or the run's record, is damaged.
    """
    # Not before: it imports onnxruntime, and who reads a finished run by this package needs none.
    from benchmark.export import edge

    return edge.load_edge(folder)
