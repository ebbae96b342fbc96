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

ATLAS = "atlas"
"""Names the time of reading among the times of the teacher's outputs."""
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
        self._outputs: dict[str, Outputs] = {}
        self._heads: dict[tuple[str, str], Any] = {}
        self._widened: dict[tuple[str, str], Any] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        self._read: Tensor | None = None

    @property
    def seconds(self) -> float:
        """Host time spent on this batch so far."""
        return sum(self._seconds.values())

    def seconds_for(self, views: Iterable[View], heads: Iterable[tuple[str, View]]) -> float:
        """Add up the host time of the outputs of some views and of some heads, whichever run asked first."""
        return sum(self._seconds.get(key, 0.0) for key in {*(("outputs", view) for view in views), *heads})

    def outputs(self, view: View, widen: bool = False) -> Outputs:
        """Compute the outputs for a view; with `widen` in float32 even if the teacher runs in bf16."""
        if widen and self._teacher.precision == "bf16":
            return self._wide(("outputs", view), lambda: self.outputs(view))
        if view not in self._outputs:
            assert self._teacher.network is not None
            images = self._batch.view(view)
            started = time.perf_counter()
            with torch.no_grad(), autocast(images.device, self._teacher.precision):
                self._outputs[view] = self._teacher.network(images, self._teacher.preactivations)
            self._seconds["outputs", view] = time.perf_counter() - started
        return self._outputs[view]

    def logits_read(self) -> Tensor:
        """Read the logits of the plain view from the atlas, float32 [batch, classes]."""
        assert self._teacher.atlas is not None
        if self._read is None:
            started = time.perf_counter()
            self._read = self._teacher.atlas.logits(self._batch)
            self._seconds[ATLAS, "plain"] = time.perf_counter() - started
        return self._read

    def head(self, digest: str, view: View, widen: bool = False) -> Any:
        """Compute the output of the head with that run digest for a view; `widen` as for `outputs`."""
        if widen and self._teacher.precision == "bf16":
            return self._wide((digest, view), lambda: self.head(digest, view))
        key = (digest, view)
        if key not in self._heads:
            outputs = self.outputs(view)
            started = time.perf_counter()
            with torch.no_grad(), autocast(outputs.logits.device, self._teacher.precision):
                self._heads[key] = self._teacher.heads[digest].represent(outputs)
            self._seconds[key] = time.perf_counter() - started
        return self._heads[key]

    def _wide(self, key: tuple[str, str], narrow: Callable[[], Any]) -> Any:
        if key not in self._widened:
            self._widened[key] = widened(narrow())
        return self._widened[key]


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
