"""Write a trained student for a small device: `python -m benchmark.export RUN --onnx`.

The student, without whatever trained it, becomes two ONNX files, in float32 and in int8. They are checked against the
network that was trained, counted against the network of that name, and measured on this processor (docs/export.md).
"""

from benchmark.export.edge import load_edge

__all__ = ["load_edge"]
