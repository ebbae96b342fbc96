"""torchvision is imported whatever torch it was built for, and left alone where it imports by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDS_OPERATORS = """
import torch
for operator in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{operator}")(lambda dets, scores, iou_threshold: dets)
"""


def outcome(code: str, *paths: Path) -> str:
    """What a fresh interpreter prints for `code`, with `paths` searched for modules first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def stand_in(folder: Path, code: str) -> Path:
    """A package named torchvision that runs `code` when it is imported."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    return folder


def test_the_installed_torchvision_gives_its_datasets_and_transforms() -> None:
    printed = outcome(
        "from benchmark.data.torchvision_operators import import_torchvision\n"
        "datasets = import_torchvision('datasets')\n"
        "functional = import_torchvision('transforms.functional')\n"
        "print(datasets.CIFAR100.__name__, functional.pad.__name__, import_torchvision().__name__)"
    )
    assert printed == "CIFAR100 pad torchvision"


def test_missing_operators_are_declared_and_the_import_tried_again(tmp_path: Path) -> None:
    printed = outcome(
        "from benchmark.data import torchvision_operators as operators\n"
        "import torch\n"
        "operators.import_torchvision()\n"
        "print(torch.ops.torchvision.nms.default._schema)\n"
        "print(operators.declare_missing_operators())",
        stand_in(tmp_path, NEEDS_OPERATORS),
    )
    schema, declared_again = printed.splitlines()
    assert schema == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert declared_again == "()"


def test_nothing_is_declared_where_torchvision_imports_by_itself_or_fails_otherwise(tmp_path: Path) -> None:
    folder = stand_in(tmp_path, "import os\nif 'BROKEN' in os.environ: raise RuntimeError('built for another Python')")
    printed = outcome(
        "import os, torch\n"
        "from benchmark.data.torchvision_operators import import_torchvision\n"
        "os.environ['BROKEN'] = '1'\n"
        "try: import_torchvision()\n"
        "except RuntimeError as error: print(error)\n"
        "del os.environ['BROKEN']\n"
        "print(import_torchvision().__name__)\n"
        "print(hasattr(torch.ops.torchvision, 'nms'))",
        folder,
    )
    assert printed.splitlines() == ["built for another Python", "torchvision", "False"]
