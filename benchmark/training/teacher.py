"""The frozen teacher of a cohort, whose outputs and heads are computed once a batch for all runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from benchmark.backbones.network import Network, Outputs
from benchmark.core.devices import autocast
from benchmark.core.spec import Precision
from benchmark.data.augmentation import Batch
from benchmark.method.contract import ContractError, Method, View
from benchmark.training.atlas import AtlasReader

OUTPUTS, ATLAS = "outputs", "atlas"
"""Name the network's outputs and the logits of the atlas among the parts that a run may ask of a teacher."""
TeacherPart = tuple[str, View]
"""What a run may ask of a teacher: `OUTPUTS`, `ATLAS` or the key of a head, and a view."""
WITHOUT_ATLAS = "train it without --teacher-outputs atlas"


class Teacher:
    """A network in evaluation mode without gradients, and its trained heads by run digest.

    network: None if all runs read the atlas, which has the network's logits of every plain view.
    """

    def __init__(
        self,
        network: Network | None,
        heads: dict[str, Method],
        precision: Precision,
        preactivations: bool = False,
        atlas: AtlasReader | None = None,
    ) -> None:
        self.network = None if network is None else network.eval().requires_grad_(False)
        self.atlas = atlas
        self.heads = {digest: head.eval().requires_grad_(False) for digest, head in heads.items()}
        self.precision = precision
        self.preactivations = preactivations

    def on(self, batch: Batch) -> TeacherOnBatch:
        """Start a batch, of which nothing is computed yet."""
        return TeacherOnBatch(self, batch)


class TeacherOnBatch:
    """Outputs of the teacher for one batch, each computed on demand and kept."""

    def __init__(self, teacher: Teacher, batch: Batch) -> None:
        self._teacher = teacher
        self._batch = batch
        self._kept: dict[TeacherPart, Any] = {}
        self._widened: dict[TeacherPart, Any] = {}
        self._seconds: dict[TeacherPart, float] = {}

    @property
    def seconds(self) -> float:
        """Host time spent on this batch so far."""
        return sum(self._seconds.values())

    def seconds_for(self, parts: Iterable[TeacherPart]) -> float:
        """Add up the host time of some parts, whichever run asked for them first."""
        return sum(self._seconds.get(part, 0.0) for part in parts)

    def outputs(self, view: View, widen: bool = False) -> Outputs:
        """Compute the outputs for a view; with `widen` in float32 even if the teacher runs in bf16."""
        network = self._teacher.network
        assert network is not None
        images = self._batch.view(view)
        outputs: Outputs = self._compute(
            (OUTPUTS, view), lambda: network(images, self._teacher.preactivations), images.device, widen
        )
        return outputs

    def logits_read(self) -> Tensor:
        """Read the logits of the plain view from the atlas, float32 [batch, classes]."""
        atlas = self._teacher.atlas
        assert atlas is not None
        logits: Tensor = self._compute((ATLAS, "plain"), lambda: atlas.logits(self._batch), self._batch.labels.device)
        return logits

    def head(self, digest: str, view: View, widen: bool = False) -> Any:
        """Compute the output of the head with that run digest for a view; `widen` as for `outputs`."""
        outputs, head = self.outputs(view), self._teacher.heads[digest]
        return self._compute((digest, view), lambda: head.represent(outputs), outputs.logits.device, widen)

    def _compute(self, part: TeacherPart, make: Callable[[], Any], device: torch.device, widen: bool = False) -> Any:
        """Compute a part once, without a graph and in the teacher's precision, and measure its host time."""
        if part not in self._kept:
            started = time.perf_counter()
            with torch.no_grad(), autocast(device, self._teacher.precision):
                self._kept[part] = make()
            self._seconds[part] = time.perf_counter() - started
        if not widen or self._teacher.precision != "bf16":
            return self._kept[part]
        if part not in self._widened:
            self._widened[part] = widened(self._kept[part])
        return self._widened[part]


class LogitsAlone:
    """What a method sees of a teacher whose logits are read: these and nothing else."""

    def __init__(self, method: str, logits: Tensor) -> None:
        self._method, self.logits = method, logits

    def __getattr__(self, name: str) -> Any:
        raise ContractError(f"{self._method} reads the teacher's {name}, and an atlas has logits only; {WITHOUT_ATLAS}")


def widened(value: Any) -> Any:
    """Convert every half-precision tensor in a structure of tuples, lists and dataclasses to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, tuple | list):
        return type(value)(widened(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return dataclasses.replace(value, **{name: widened(getattr(value, name)) for name in names})
    return value
