"""LSSKD: softened labels from the past, on every stage, and deeper stages that teach shallower ones.

The published text of the paper lost its formulas. Equations (1) to (9) and the total are rebuilt here as the ledger of
open choices (docs/ledger.md) tells; each choice R1 to R25 that concerns the method is an option.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import (
    ROTATIONS,
    Context,
    Method,
    MethodOptions,
    Network,
    Outputs,
    PastNetwork,
    PredictionHistory,
    Step,
    UserError,
    full_precision,
    joint_labels,
    upright,
)
from methods.hssakd import logits_of
from methods.pskd import growing_alpha, one_hot, probabilities, soft_cross_entropy, soft_targets

Source = Literal["deepest", "next", "all_deeper", "backbone"]


def joint_one_hot(labels: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """1 at class * 4 + rotation, else 0: [batch, 4, 1, 4 * classes], the same for every branch (equation 3)."""
    targets = one_hot(joint_labels(labels), ROTATIONS * num_classes, like)
    return targets.unflatten(0, (-1, ROTATIONS))[:, :, None]


def hierarchical_loss(branch_logits: Sequence[Tensor], targets: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """Cross entropy of each branch with its softened joint labels, its mean over all views: a scalar (equation 5).

    branch_logits: [4 * batch, 4 * classes] each; targets: [batch, 4, branches or 1, 4 * classes]; reduction: sum or
    mean over the branches.
    """
    by_branch = targets.expand(-1, -1, len(branch_logits), -1).unbind(2)
    pairs = zip(branch_logits, by_branch, strict=True)
    losses = torch.stack([soft_cross_entropy(logits, target.flatten(0, 1)) for logits, target in pairs])
    return losses.sum() if reduction == "sum" else losses.mean()


def _log_classes(log_joint: Tensor) -> Tensor:
    """Log of the class distribution [rows, classes] of a log joint distribution: summed over the rotations."""
    return log_joint.unflatten(1, (-1, ROTATIONS)).logsumexp(2)


@full_precision
def stage_divergence(
    branch_logits: Sequence[Tensor],
    backbone_logits: Tensor,
    temperature: float,
    source: Source,
    scaled: bool,
    stop_gradient: bool,
) -> Tensor:
    """KL(source || branch) at a temperature, its mean over all views, summed over pairs: a scalar (equation 7).

    branch_logits: [4 * batch, 4 * classes] each, shallow to deep; backbone_logits: [4 * batch, classes];
    source: of every branch but the deepest, the deepest one; the next deeper one; each deeper one in turn; or the
    backbone's head, which is compared with the branch's class distribution (its joint one summed over the rotations);
    scaled: times T^2; stop_gradient: none flows into the source.
    """
    log_joint = [F.log_softmax(logits / temperature, dim=1) for logits in branch_logits]
    if source == "backbone":
        log_backbone = F.log_softmax(backbone_logits / temperature, dim=1)
        pairs = [(_log_classes(shallow), log_backbone) for shallow in log_joint[:-1]]
    elif source == "deepest":
        pairs = [(shallow, log_joint[-1]) for shallow in log_joint[:-1]]
    elif source == "next":
        pairs = list(pairwise(log_joint))
    else:
        pairs = list(combinations(log_joint, 2))
    if stop_gradient:
        pairs = [(shallow, deep.detach()) for shallow, deep in pairs]
    divergences = [F.kl_div(shallow, deep, reduction="batchmean", log_target=True) for shallow, deep in pairs]
    return torch.stack(divergences).sum() * (temperature**2 if scaled else 1.0)


@full_precision
def feature_loss(pooled: Sequence[Tensor], target: Tensor, reduction: Literal["batch_mean", "element_mean"]) -> Tensor:
    """Squared distance of each branch's pooled features to the target, summed over the branches (equation 8).

    pooled: [4 * batch, width] each; target: [4 * batch, width], no gradient; reduction: of a branch, the mean over the
    views of the squared L2 norm, or the mean over all elements.
    """
    losses = torch.stack([F.mse_loss(features, target.detach()) for features in pooled])
    return losses.sum() * (target.shape[1] if reduction == "batch_mean" else 1)


class LSSKD(Method):
    """Labels softened by the past teach head and branches; the deepest branch and the last layer teach the others.

    "A Layered Self-Supervised Knowledge Distillation Framework for Efficient Multimodal Learning on the Edge", as it
    is rebuilt in docs/ledger.md: L_ce (4) of the head and L_h (5) of the branches against targets
    softened by the epoch before (1)-(3), L_kl (7) from deeper to shallower branches, and L_f (8) towards the last
    layer's pooled features. By default L = L_ce + L_h + beta * L_kl + gamma * L_f, equations (6), (9) and the total.
    """

    name = "LSSKD"
    paper = "A Layered Self-Supervised Knowledge Distillation Framework for Efficient Multimodal Learning on the Edge"
    equation = "L = L_ce + L_h + beta L_kl + gamma L_f, labels softened by the epoch before (equations 1 to 9)"
    remark = "the paper's formulas are lost; rebuilt in docs/ledger.md"
    view = "rotated"
    student_branches = True

    class Options(MethodOptions):
        alpha: float = Field(0.8, ge=0, le=1, description="R1: trust in the past, a_T of (1) and (2)")
        alpha_schedule: Literal["linear", "constant"] = Field(
            "linear", description="R1: a_t grows to alpha in the last epoch, or is alpha from the second epoch on"
        )
        soften_joint: bool = Field(True, description="R1: soften the branches' labels (2) too; false: one-hot ones")
        temperature: float = Field(3.0, gt=0, description="R2: temperature T of (7)")
        beta: float = Field(1.0, ge=0, description="R3: weight beta, of L_kl unless weighting says otherwise")
        gamma: float = Field(0.03, ge=0, description="R4: weight gamma of L_f")
        feature_reduction: Literal["batch_mean", "element_mean"] = Field(
            "batch_mean", description="R4: (8) is the mean over views of the squared norm, or over all elements"
        )
        source: Source = Field(
            "deepest",
            description="R5: what teaches a branch in (7): the deepest branch, the next deeper one, every deeper one "
            "(summed), or the backbone's head (class distributions)",
        )
        branch_gradients: bool = Field(True, description="R7: gradients of the branches reach the backbone")
        past: Literal["table", "previous_weights"] = Field(
            "table",
            description="R8: past predictions are those made in training an epoch ago, or those of the weights at the "
            "end of the previous epoch on the present view",
        )
        table_dtype: Literal["float16", "float32", "float64"] = Field("float16", description="R8: table precision")
        class_forward: Literal["shared", "own"] = Field(
            "shared", description="R12: p_t(x) from the upright rows of the one forward, or from a forward of its own"
        )
        feature_target: Literal["backbone", "last_branch"] = Field(
            "backbone", description="R13: target of (8): pooled features of the backbone or of the deepest branch"
        )
        feature_branches: Literal["shallower", "all"] = Field(
            "shallower", description="R13: branches in (8): all but the deepest, or all"
        )
        past_temperature: float = Field(1.0, gt=0, description="R14: temperature of the past predictions")
        class_target: Literal["backbone", "all_stages"] = Field(
            "backbone",
            description="R24: past of (1): the head's, or the mean of the head's and of every branch's class "
            "distribution of the upright image (its joint one summed over the rotations)",
        )
        weighting: Literal["separate", "alpha_beta", "beta_on_hierarchical"] = Field(
            "separate",
            description="R25: L_ce + L_h + beta L_kl + gamma L_f; or alpha (L_ce + L_h) + beta (L_kl + gamma L_f); or "
            "L_ce + beta L_h + L_kl + gamma L_f",
        )
        softening: float | None = Field(
            None, ge=0, le=1, description="R25: a_T where alpha is to be a weight only; none: alpha is a_T too"
        )
        branches: int | None = Field(
            None, ge=1, description="so many branches, on the deepest stages; none: one on every stage"
        )
        branch_reduction: Literal["sum", "mean"] = Field("sum", description="(5) is the sum or the mean over branches")
        squared_temperature: bool = Field(True, description="(7) is multiplied by T^2")
        stop_gradient: bool = Field(True, description="(7) sends no gradient into its source")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        available = len(context.student.branch_maps)
        if available < 2:
            raise UserError(f"{self.name}: {context.student.name} has one stage; choose a network with two or more")
        self.count = available if options.branches is None else options.branches
        if self.count > available:
            raise UserError(
                f"{self.name}: {context.student.name} has {available} stages for branches, not {self.count}; choose "
                f"branches from 1 to {available}"
            )
        self.num_classes = context.num_classes
        joint_classes = ROTATIONS * context.num_classes
        self.branches = context.branches(context.student, joint_classes)
        if self.count < available:
            self.branches.keep_deepest(self.count)
        self.class_history: PredictionHistory | None = None
        self.joint_history: PredictionHistory | None = None
        self.past_network: PastNetwork | None = None
        if options.past == "previous_weights" and self.final_alpha:
            self.past_network = PastNetwork(context.network(context.student), copy.deepcopy(self.branches))
            return
        if self.final_alpha == 0:
            return
        images = len(context.labels)
        self.class_history = PredictionHistory(images, (context.num_classes,), options.table_dtype)
        if options.soften_joint:
            shape = (ROTATIONS, self.count, joint_classes)
            self.joint_history = PredictionHistory(images, shape, options.table_dtype)

    @property
    def weights(self) -> dict[str, float]:
        weights = self._weights
        # What weighs nothing is not computed.
        if not (self._some_branch_is_taught and weights["kl"]):
            del weights["kl"]
        if not (self._some_features_are_taught and weights["feature"]):
            del weights["feature"]
        return weights

    @property
    def _weights(self) -> dict[str, float]:
        options = self.options
        if options.weighting == "alpha_beta":
            label, deep = options.alpha, options.beta
            return {"ce": label, "hierarchical": label, "kl": deep, "feature": deep * options.gamma}
        if options.weighting == "beta_on_hierarchical":
            return {"ce": 1.0, "hierarchical": options.beta, "kl": 1.0, "feature": options.gamma}
        return {"ce": 1.0, "hierarchical": 1.0, "kl": options.beta, "feature": options.gamma}

    @property
    def _some_branch_is_taught(self) -> bool:
        # No source of (7) teaches the deepest branch.
        return self.count > 1

    @property
    def _some_features_are_taught(self) -> bool:
        # Of the deepest branch (8) compares the features with the backbone's, if it compares them at all.
        return self.count > 1 or (self.options.feature_branches == "all" and self.options.feature_target == "backbone")

    def alpha_in(self, epoch: int, epochs: int) -> float:
        """a_t of (1) and (2) in an epoch counted from 0: there is no past in the first one."""
        final = self.final_alpha
        if epoch == 0:
            return 0.0
        return growing_alpha(final, epoch, epochs) if self.options.alpha_schedule == "linear" else final

    @property
    def final_alpha(self) -> float:
        """a_T: where it is 0 there is no past to keep."""
        return self.options.alpha if self.options.softening is None else self.options.softening

    def forward(self, step: Step) -> dict[str, Tensor]:
        options = self.options
        student = step.student("rotated")
        stages = student.branch_maps if options.branch_gradients else student.detach().branch_maps
        branches = self.branches(stages)
        joint_logits = logits_of(branches)
        own = options.class_forward == "own"
        class_logits = step.student("plain").logits if own else upright(student.logits)
        class_targets, joint_targets = self._targets(step, class_logits)
        self._record(step, class_logits, joint_logits)
        terms = {
            "ce": soft_cross_entropy(class_logits, class_targets),
            "hierarchical": hierarchical_loss(joint_logits, joint_targets, options.branch_reduction),
        }
        weights = self.weights
        if "kl" in weights:
            terms["kl"] = stage_divergence(
                joint_logits,
                student.logits,
                options.temperature,
                options.source,
                options.squared_temperature,
                options.stop_gradient,
            )
        if "feature" in weights:
            terms["feature"] = self._feature_loss(student, branches)
        return terms

    def stage_logits(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """Joint logits [rows, 4 * classes] of each branch."""
        return tuple(logits_of(self.branches(outputs.branch_maps)))

    def end_epoch(self, epoch: int, student: Network) -> None:
        """Keep the weights, where the past is made from them."""
        if self.past_network is not None:
            self.past_network.remember(student, self.branches)

    def _feature_loss(self, student: Outputs, branches: Sequence[Any]) -> Tensor:
        options = self.options
        taught = branches if options.feature_branches == "all" else branches[:-1]
        target = student.pooled if options.feature_target == "backbone" else branches[-1].pooled
        return feature_loss([branch.pooled for branch in taught], target, options.feature_reduction)

    def _targets(self, step: Step, class_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Softened class labels [batch, classes] (1) and joint labels [batch, 4, branches or 1, 4 * classes] (2)."""
        alpha = self.alpha_in(step.epoch, step.epochs)
        past_class: Tensor | None = None
        past_joint: Tensor | None = None
        if self.past_network is not None and step.epoch > 0:
            outputs, branches = self.past_network(step.images("rotated"))
            past_class, past_joint = self._predictions(upright(outputs.logits), logits_of(branches))

        def class_targets(labels: Tensor, index: Tensor) -> Tensor:
            hard = one_hot(labels, self.num_classes, class_logits)
            past = past_class
            if self.class_history is not None and step.epoch > 0:
                past = self.class_history.look_up(index, hard)
            return soft_targets(hard, past, alpha)

        def joint_targets(labels: Tensor, index: Tensor) -> Tensor:
            hard = joint_one_hot(labels, self.num_classes, class_logits)
            past = past_joint if self.options.soften_joint else None
            if self.joint_history is not None and step.epoch > 0:
                past = self.joint_history.look_up(index, hard)
            return soft_targets(hard, past, alpha)

        return step.over_images(class_targets), step.over_images(joint_targets)

    def _predictions(self, class_logits: Tensor, joint_logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What the network says, without a graph: [batch, classes] and [batch, 4, branches, 4 * classes]."""
        temperature = self.options.past_temperature
        by_view = torch.stack([logits.detach().unflatten(0, (-1, ROTATIONS)) for logits in joint_logits], dim=2)
        joint = probabilities(by_view, temperature)
        classes = probabilities(class_logits, temperature)
        if self.options.class_target == "all_stages":
            of_branches = joint[:, 0].unflatten(2, (-1, ROTATIONS)).sum(3)
            classes = torch.cat((classes[:, None], of_branches), dim=1).mean(1)
        return classes, joint

    def _record(self, step: Step, class_logits: Tensor, joint_logits: Sequence[Tensor]) -> None:
        # What is said of a mixture is said of neither image: each keeps what was last said of it alone.
        if self.class_history is None or step.mixture is not None:
            return
        classes, joint = self._predictions(class_logits, joint_logits)
        self.class_history.store(step.index, classes)
        if self.joint_history is not None:
            self.joint_history.store(step.index, joint)
