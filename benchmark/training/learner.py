"""Trains one run: its student, its method and its optimiser, of which no other run of the cohort uses anything."""

from __future__ import annotations

import contextlib
import time
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmark.backbones import AuxiliaryBranches, build_branches, build_network, is_mobile_network
from benchmark.backbones.initialisation import fill_parameters
from benchmark.backbones.network import Network, Outputs, Shape, statistics_kept
from benchmark.backbones.shapes import network_shape
from benchmark.core.devices import autocast, placed
from benchmark.core.errors import UserError
from benchmark.core.rng import generator
from benchmark.core.spec import Run
from benchmark.data.augmentation import Batch
from benchmark.method.collectives import (
    SINGLE_PROCESS,
    ProcessGroup,
    all_reduce_mean,
    current_shard,
    fewest_rows,
    weight_mean,
)
from benchmark.method.contract import Context, ContractError, Method, Step, View
from benchmark.plugins.registry import method_class, resolve_options
from benchmark.plugins.source import fingerprint_code
from benchmark.training import ddp
from benchmark.training.optimizer import MomentumSGD
from benchmark.training.teacher import ATLAS, OUTPUTS, WITHOUT_ATLAS, LogitsAlone, TeacherOnBatch, TeacherPart


def fresh_network(name: str, num_classes: int, seed: int) -> Network:
    """Make a network with its first weights, which depend only on its name, the parameters' names and the seed."""
    network = build_network(name, num_classes)
    network.initialise(lambda parameter: generator("weights", name, parameter, seed))
    return network


def build_method(run: Run, num_classes: int, image_size: int, labels: Tensor, fill: bool = True) -> Method:
    """Build the method of a run, with its extra modules as they are before training.

    fill: False only checks that the method can be built; its networks and branches then have no weights.

    Raises:
        UserError: the method refuses its options or the networks.
    """
    cls = method_class(run.method)
    device = torch.device("cpu" if fill else "meta")
    own = ("method", run.method, run.student)

    def shape(name: str) -> Shape:
        return network_shape(name, num_classes, image_size)

    def initialise(module: nn.Module, name: str) -> nn.Module:
        if not fill:
            return module
        fill_parameters(module, lambda parameter: generator(*own, name, parameter, run.seed))
        return module

    def draw(module: AuxiliaryBranches | Network, owner: Shape, stream: str, *part: str) -> None:
        names = (*own, stream) if stream else ("weights", owner.name)
        if fill:
            module.initialise(lambda parameter: generator(*names, *part, parameter, run.seed))

    def branches(owner: Shape, outputs: int, stream: str = "", /) -> AuxiliaryBranches:
        with device:
            module = build_branches(owner.name, outputs)
        draw(module, owner, stream, "branches")
        return module

    def network(owner: Shape, stream: str = "", /) -> Network:
        with device:
            module = build_network(owner.name, num_classes)
        draw(module, owner, stream)
        return module

    context = Context(
        student=shape(run.student),
        teacher=shape(run.teacher_network) if run.teacher_network else None,
        num_classes=num_classes,
        labels=labels,
        generator=lambda name: generator(*own, name, run.seed),
        initialise=initialise,
        branches=branches,
        network=network,
        batch_size=fewest_rows(run.processes, min(run.batch_size, len(labels))),
    )
    return cls(context, resolve_options(cls, run.protocol, run.student, run.options, teacher=run.teacher_network))


class Learner:
    """Trains one run, a step at a time; the cohort hands it batches and the teacher's outputs."""

    def __init__(
        self,
        run: Run,
        num_classes: int,
        image_size: int,
        labels: Tensor,
        steps: int,
        device: torch.device,
        first_weights: dict[str, Tensor] | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.run = run
        self.group = group
        self.device = device
        self.steps = steps
        self.epochs = run.schedule.epochs
        self._asked: set[TeacherPart] = set()
        self.mobile_network = is_mobile_network(run.student)
        self.method = placed(build_method(run, num_classes, image_size, labels), device)
        self.code = fingerprint_code(method_class(run.method))
        """The fingerprint of the method's code; joined by + if the code changed while the run was interrupted."""
        self.student: Network | None = None
        if self.method.trains_student:
            network = fresh_network(run.student, num_classes, run.seed)
            if first_weights is not None:
                network.load_state_dict(first_weights | self._own_first_weights(network))
            self.student = placed(network, device)
            for part in self._frozen_modules():
                part.requires_grad_(False).eval()
        modules: list[nn.Module] = [self.method] if self.student is None else [self.student, self.method]
        self.parameters = [each for module in modules for each in module.parameters() if each.requires_grad]
        self.optimizer = MomentumSGD(self.parameters, run.protocol)
        self.losses = torch.zeros(steps, device=device)
        self.terms = torch.zeros(len(self.method.weights), dtype=torch.float64, device=device)
        self.figures: list[dict[str, Any]] = []
        self.seconds = 0.0
        """Host time of its own steps, without the teacher's forwards."""
        self.teacher_seconds = 0.0
        """Host time of the teacher's forwards that it used, even if other runs used them too."""
        self._draws = False
        self._loss_of = ddp.make_loss(group, self.method, self.student)

    def step(self, batch: Batch, teacher: TeacherOnBatch | None, epoch: int, step: int) -> None:
        """Take one step of the optimiser on one batch."""
        self._train_mode()
        rate = self.run.learning_rate(epoch, step, self.steps, self.mobile_network)
        with autocast(self.device, self.run.precision):
            loss, terms = self._loss_of(self._make_step(batch, teacher, epoch, step))
        weight_mean(loss).backward()
        if (longest := self.method.longest_gradient) is not None:
            nn.utils.clip_grad_norm_(self.parameters, longest)
        self.optimizer.step(rate)
        self.optimizer.zero_grad()
        if self.student is not None:
            self.method.end_step(self.student)
        with torch.no_grad():
            figures = all_reduce_mean(
                torch.stack([value.double() for value in (loss, *(terms[name] for name in self.method.weights))])
            )
            self.losses[step] = figures[0]
            self.terms += figures[1:]

    def _train_mode(self) -> None:
        if not self.method.training:
            self.method.train()
        if self.student is not None and not self.student.training:
            self.student.train()
            for part in self._frozen_modules():
                part.eval()

    def _frozen_modules(self) -> list[nn.Module]:
        """List the parts of the student that are not trained."""
        if self.student is None or self.method.trains == "student":
            return []
        if self.method.trains == "classifier":
            return [part for part in self.student.children() if part is not self.student.classifier_module]
        return [self.student.get_submodule(name) for name in self.student.after_stages]

    def _own_first_weights(self, network: Network) -> dict[str, Tensor]:
        """Collect the first weights that it does not take over from another run: those of a classifier of its own."""
        if self.method.trains != "classifier":
            return {}
        own = network.after_stages[-1] + "."
        return {name: weight for name, weight in network.state_dict().items() if name.startswith(own)}

    def _make_step(self, batch: Batch, teacher: TeacherOnBatch | None, epoch: int, step: int) -> Step:
        run, method = self.run, self.method
        # A teacher may run in bf16 beside a student in fp32.
        widen = run.precision == "fp32"
        self._asked = set()

        def student(shown: View | Tensor, gather: bool = True) -> Outputs:
            if self.student is None:
                raise ContractError(f"{run.method} asks for a student, and has trains_student = False")
            images = shown if isinstance(shown, Tensor) else batch.view(shown)
            with contextlib.nullcontext() if gather else statistics_kept(self.student):
                return self.student(images, method.needs_preactivations)

        def teacher_outputs(view: View) -> Outputs:
            # `teacher` is set if any run of the cohort has one.
            if teacher is None or run.teacher is None:
                raise ContractError(f"{run.method} asks for a teacher, and does not say needs_teacher = True")
            if run.teacher_outputs == "live":
                self._asked.add((OUTPUTS, view))
                return teacher.outputs(view, widen)
            if view != "plain":
                raise ContractError(
                    f"{run.method} asks for the teacher's view {view}, and an atlas has plain ones; {WITHOUT_ATLAS}"
                )
            self._asked.add((ATLAS, view))
            return cast(Outputs, LogitsAlone(run.method, teacher.logits_read()))

        def teacher_head(view: View) -> Any:
            if teacher is None or run.head is None:
                raise ContractError(f"{run.method} asks for a head of a teacher, and names none as its teacher_head")
            self._asked |= {(OUTPUTS, view), (head_key(run), view)}
            return teacher.head(head_key(run), view, widen)

        def stream(name: str) -> torch.Generator:
            self._draws = True
            owner = (run.dataset, run.fraction, run.protocol.name, run.seed, run.method, run.student)
            part = current_shard()
            # Processes that share a batch must not draw the same numbers for their rows.
            rank = (part.group.rank,) if part and part.counts and part.group.rank else ()
            return generator("step", *owner, epoch, step, name, *rank, device=self.device)

        return Step(
            labels=batch.labels,
            index=batch.index,
            epoch=epoch,
            epochs=self.epochs,
            progress=(epoch * self.steps + step) / (self.epochs * self.steps),
            images=batch.view,
            student=student,
            teacher=teacher_outputs,
            teacher_head=teacher_head,
            generator=stream,
            mixture=batch.mixture,
        )

    def find_bad_step(self, steps_done: int) -> int | None:
        """Find the first of this epoch's steps so far, counted from 1, whose loss is infinite or nan.

        Nothing else in training waits for the device.
        """
        bad = torch.isfinite(self.losses[:steps_done]).logical_not().nonzero()
        return int(bad[0]) + 1 if len(bad) else None

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Call the method's `end_epoch`, return the epoch's training figures, and reset the sums.

        Raises:
            UserError: the method keeps what is not the same on all processes that share its batches.
        """
        self.group.sync_batchnorm_stats(self.student, self.method)
        if differing := self.group.mismatched(self.state()):
            raise UserError(
                f"{self.run.id}: the processes that share its batches have different {', '.join(differing[:3])} after "
                f"epoch {epoch + 1}; what a method keeps of images must pass through gathered or averaged (see "
                "docs/data-parallel.md); train this one with --processes-per-run 1"
            )
        if self.student is not None:
            self.method.end_epoch(epoch, self.student)
        means = (self.terms / self.steps).tolist()
        figures = {
            "epoch": epoch + 1,
            "loss": float(self.losses.double().mean()),
            "terms": dict(zip(self.method.weights, means, strict=True)),
        }
        self.losses.zero_()
        self.terms.zero_()
        return figures

    def state(self) -> dict[str, Tensor]:
        """Collect all tensors that a resumed run needs, by name."""
        state = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        if self.student is not None:
            state |= {f"student.{name}": tensor for name, tensor in self.student.state_dict().items()}
        state |= {f"momentum.{number}": momentum for number, momentum in enumerate(self.optimizer.momenta)}
        return state | {"losses": self.losses, "terms": self.terms}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a state that `state` returned."""
        parts: dict[str, dict[str, Tensor]] = {"method": {}, "student": {}, "momentum": {}}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            if part in parts:
                parts[part][name] = tensor
        self.method.load_state_dict(parts["method"])
        if self.student is not None:
            self.student.load_state_dict(parts["student"])
        for number, momentum in enumerate(self.optimizer.momenta):
            momentum.copy_(parts["momentum"][str(number)])
        self.losses.copy_(state["losses"])
        self.terms.copy_(state["terms"])

    @property
    def remark(self) -> str | None:
        """How processes shared its batches, for readers of its record; None for a single process."""
        return ddp.describe_sharing(self.group, self.method, self.student, self._draws)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Collect a finished run's weights: the student's, and the method's if other runs or predictions need them."""
        weights = {}
        if self.student is not None:
            weights["student"] = self.student.state_dict()
        is_head = type(self.method).represent is not Method.represent
        if is_head or (self.student is not None and self.method.predictor(self.student) is not self.student):
            weights["method"] = self.method.state_dict()
        return weights

    def predictor(self) -> nn.Module | None:
        """Return the module that predicts after training, in evaluation mode; None if the run trains no classifier."""
        if self.student is None:
            return None
        predictor = self.method.predictor(self.student.eval())
        trained = self.method.trains != "stages" or predictor is not self.student
        return predictor.eval() if trained else None

    def timed_step(self, batch: Batch, teacher: TeacherOnBatch | None, epoch: int, step: int) -> None:
        """Take a step and add its host time to `seconds` and `teacher_seconds`."""
        started, taught = time.perf_counter(), teacher.seconds if teacher else 0.0
        self.step(batch, teacher, epoch, step)
        self.seconds += time.perf_counter() - started
        if teacher:
            self.seconds -= teacher.seconds - taught
            self.teacher_seconds += teacher.seconds_for(self._asked)


def head_key(run: Run) -> str:
    """Name the head that a run reads, among the heads of its teacher."""
    if isinstance(run.head, Run):
        return run.head.digest
    assert run.head is not None
    return f"{run.head.sha256}:{run.head.network}"
