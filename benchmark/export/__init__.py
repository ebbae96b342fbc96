"""Write a trained student for a small device: `python -m benchmark.export RUN --onnx`.

The student, without whatever trained it, becomes two ONNX files, in float32 and in int8. They are checked against the
network that was trained, counted against the network of that name, and measured on this processor (docs/export.md).

This file reads the figures of an export, and imports nothing that writes one: onnxruntime takes a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.results.record import MAX_RECORD_BYTES

FORMAT = 1
FIGURES = "edge.json"
Edge = dict[str, Any]


def load_edge(folder: Path) -> Edge | None:
    """Read the figures of an exported run from its folder; None if it was not exported, or was trained again since.

    Raises:
        UserError: the file of figures, or the run's record, is damaged.
    """
    path = folder / FIGURES
    try:
        edge: Edge = json.loads(read_text_limited(path, MAX_RECORD_BYTES))
        record = json.loads(read_text_limited(folder / "record.json", MAX_RECORD_BYTES))
        if edge["format"] != FORMAT:
            raise ValueError("another format")
        return edge if edge["weights"] == record["weights"].get("student") else None
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        UntrustedInputError,
    ) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); delete it and export the run again"
        ) from error
