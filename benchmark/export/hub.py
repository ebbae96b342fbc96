"""Write a trained student as a folder that a model hub takes: weights, configuration and card. It uploads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

import benchmark
from benchmark.backbones.network import Network
from benchmark.core.errors import UserError
from benchmark.data.dataset import Dataset
from benchmark.export.finished import FinishedRun
from benchmark.io.files import compute_sha256, replacing, save_tensors, write_text
from benchmark.plugins.registry import method_class
from tables.escaping import escape_markdown, make_environment

TEMPLATES = Path(__file__).parent / "templates"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
NOTE = "kd-benchmark"
"""The key of the configuration in the header of the weights, so that these can be read alone."""


def write_hub_folder(finished: FinishedRun, network: nn.Module, dataset: Dataset, folder: Path) -> list[Path]:
    """Write `model.safetensors`, `config.json` and `README.md` of a run's student, and return their paths.

    network: what predicts after training; dataset: that of the run.

    Raises:
        UserError: more than the student predicts, or the folder cannot be written.
    """
    if not isinstance(network, Network):
        raise UserError(
            f"{finished.run.id} predicts with modules of its method beside the student, which this folder cannot hold; "
            "export it with --onnx"
        )
    config = describe_student(finished, dataset)
    with replacing(folder / WEIGHTS) as file:
        save_tensors(file.temporary, network.state_dict(), {NOTE: json.dumps(config)})
        digest = compute_sha256(file.temporary)
    write_text(folder / CONFIG, json.dumps({**config, "sha256": digest}, indent=1) + "\n")
    card = make_environment(TEMPLATES, escape_markdown).get_template("card.md.j2")
    method = method_class(finished.run.method)
    text = card.render(
        config=config, digest=digest, about=json.dumps(_index(config), indent=1, ensure_ascii=False), paper=method.paper
    )
    write_text(folder / CARD, text)
    return [folder / name for name in (WEIGHTS, CONFIG, CARD)]


def describe_student(finished: FinishedRun, dataset: Dataset) -> dict[str, Any]:
    """Describe a student: what it is, how it was trained, how its images are normalised, and what it reaches."""
    run, final = finished.run, finished.record["final"]
    made = finished.record["provenance"]
    return {
        "network": run.student,
        "method": run.method,
        "teacher": run.teacher_network,
        "dataset": run.dataset,
        "seed": run.seed,
        "scale": run.scale.name,
        "protocol": run.protocol.name,
        "epochs": run.schedule.epochs,
        "options": run.options,
        "num_classes": dataset.num_classes,
        "image_size": dataset.image_size,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "classes": list(dataset.classes),
        "metrics": {name: final[name] for name in ("top1", "top5", "nll", "ece") if name in final},
        "held_out": run.validation,
        "run": run.id,
        "digest": run.digest,
        "version": made.get("version"),
        "commit": made.get("commit"),
        "exported_by": benchmark.__version__,
    }


def _index(config: dict[str, Any]) -> dict[str, Any]:
    """The metadata that hubs read of a card, with its `model-index`; JSON, which YAML reads too."""
    names = {"top1": "accuracy", "top5": "top_5_accuracy"}
    metrics = [
        {"type": names[name], "value": round(value / 100, 6), "name": f"{name}, last epoch, one seed"}
        for name, value in config["metrics"].items()
        if name in names
    ]
    split = "held out from training" if config["held_out"] else "test"
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": config["dataset"], "type": config["dataset"], "split": split},
        "metrics": metrics,
    }
    name = f"{config['method']} {config['network']} {config['dataset']}"
    return {
        "library_name": "kd-benchmark",
        "pipeline_tag": "image-classification",
        "tags": ["knowledge-distillation", "image-classification"],
        "model-index": [{"name": name, "results": [result]}],
    }
