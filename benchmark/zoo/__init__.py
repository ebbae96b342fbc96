"""Load trained students by name: `load("cifar100", "LSSKD", "WRN-16-2", seed=0)`.

They come from a folder of runs, from a folder that `python -m benchmark.export RUN --hub DIR` wrote, or from the
address of such a folder's `model.safetensors`, which is compared with its checksum. No file that is read holds code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from benchmark.backbones import build_network
from benchmark.backbones.network import Network
from benchmark.backbones.shapes import count_classes
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.data.download import fetch_file
from benchmark.export.finished import load_finished_run, load_predictor
from benchmark.export.hub import CONFIG, NOTE, WEIGHTS
from benchmark.io.files import compute_sha256
from benchmark.results.store import Store

__all__ = ["load"]


def load(
    dataset: str,
    method: str,
    student: str,
    *,
    seed: int = 0,
    teacher: str | None = None,
    scale: str | None = None,
    source: str | Path = "runs",
    sha256: str | None = None,
) -> Network:
    """Load a trained student in evaluation mode; its forward takes normalised images [batch, 3, size, size].

    teacher, scale: which of several runs, where there are several; source: a folder of runs, a folder written with
    `--hub`, or the http(s) address of its `model.safetensors`; sha256: of the weights' file, needed for an address.

    Raises:
        UserError: there is no such student or more than one, its file is another one than the checksum's, or it cannot
            be fetched.
    """
    wanted = {"dataset": dataset, "method": method, "network": student, "seed": seed}
    wanted |= {name: value for name, value in (("teacher", teacher), ("scale", scale)) if value is not None}
    if str(source).startswith(("http://", "https://")):
        if sha256 is None:
            raise UserError(f"{source} may hold anything; pass sha256=, which config.json beside it tells")
        return _load_file(fetch_file(str(source), f"sha256:{sha256}", _cache_folder()), wanted, sha256)
    folder = Path(source)
    if (folder / CONFIG).is_file() or folder.suffix == ".safetensors":
        return _load_file(folder if folder.is_file() else folder / WEIGHTS, wanted, sha256)
    return _load_from_runs(folder, wanted)


def _cache_folder() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "kd-benchmark" / "zoo"


def _load_from_runs(root: Path, wanted: dict[str, Any]) -> Network:
    records, _ = Store(root).read_all()
    found = []
    for record in records:
        run = Run.model_validate(record["run"])
        if record["status"] == "finished" and "student" in record["weights"] and _matches(_describe(run), wanted):
            found.append((run, record))
    if len(found) != 1:
        words = ", ".join(f"{name} {value}" for name, value in wanted.items())
        listed = "; ".join(sorted(f"scale {run.scale.name}, teacher {run.teacher_network}" for run, _ in found))
        if found:
            raise UserError(f"{root} has {len(found)} runs of {words}: {listed}; say which with scale= and teacher=")
        raise UserError(f"{root} has no finished run of {words}; give source=, the folder that has it")
    ((run, record),) = found
    finished = load_finished_run(str(Store(root).folder(run)), root)
    network = load_predictor(finished, _count_classes(run.student, finished.weights), record["cost"]["image_size"])
    if not isinstance(network, Network):
        raise UserError(f"{run.id} predicts with modules of its method beside the student; export it with --onnx")
    return network


def _describe(run: Run) -> dict[str, Any]:
    return {
        "dataset": run.dataset,
        "method": run.method,
        "network": run.student,
        "seed": run.seed,
        "teacher": run.teacher_network,
        "scale": run.scale.name,
    }


def _matches(described: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(described.get(name) == value for name, value in wanted.items())


def _load_file(path: Path, wanted: dict[str, Any], sha256: str | None) -> Network:
    """Load a file written with `--hub`, after its checksum and what its header says of it."""
    try:
        if sha256 is not None and compute_sha256(path) != sha256:
            raise UserError(f"{path} is another file than the one of sha256 {sha256}; fetch it again")
        with safetensors.safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {}).get(NOTE, "{}"))
        weights = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}); export the run again") from error
    if not isinstance(config, dict) or not _matches(config, wanted):
        told = {name: config.get(name) for name in wanted} if isinstance(config, dict) else {}
        raise UserError(f"{path} holds {told}, not {wanted}; name what it holds, or another source")
    network = build_network(wanted["network"], _count_classes(wanted["network"], weights))
    network.load_state_dict(weights)
    return network.eval()


def _count_classes(name: str, weights: dict[str, Tensor]) -> int:
    """Count the classes that weights are for.

    Raises:
        UserError: they are of another network.
    """
    classes = count_classes(name, weights)
    if classes is None:
        raise UserError(
            f"these weights are not those of {name}; name the network that they are of, or export the run again"
        )
    return classes
