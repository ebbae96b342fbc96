"""HSSAKD online: two peers with branches learn together and from each other, without a teacher."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from benchmark.method import ROTATIONS, Context, Method, MethodOptions, Outputs, Step
from methods.hssakd import PAPER, branch_divergence, branch_label_losses, logits_of
from methods.kd import distillation_loss


class HSSAKDOnline(Method):
    """Two networks of the same kind and their branches learn the labels and imitate each other, stage by stage.

    Yang, An, Cai and Xu, "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021, in the online
    form of their public code: for both networks L_ce and the branches' cross entropy with the joint labels; and
    T^2 KL between the heads and between the branches of a stage, in both directions, all four rotations in each. No
    gradient flows into the side that is imitated. The student is the first of the two; the other, from first weights
    of its own, lives and dies with the training.
    """

    name = "HSSAKD-online"
    paper = PAPER
    equation = "L = Σ_peers [CE + Σ_branches CE(q, class x rotation) + T² KL of the heads + Σ_branches T² KL], T = 3"
    golden = "hssakd_online"
    remark = (
        "no teacher: two peers of one network; the first is reported, while the public code takes the better on test"
    )
    view = "rotated"
    student_passes = 2.0
    student_branches = True
    in_default_grid = False

    class Options(MethodOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of both cross entropies on upright images")
        joint_weight: float = Field(1.0, ge=0, description="weight of the branches' cross entropies with joint labels")
        kd_weight: float = Field(1.0, ge=0, description="weight of the divergences of the heads on all four rotations")
        branch_weight: float = Field(1.0, ge=0, description="weight of the divergences of the branches")
        temperature: float = Field(3.0, gt=0, description="temperature T of every divergence")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        joint_classes = ROTATIONS * context.num_classes
        self.branches = context.branches(context.student, joint_classes)
        self.peer = context.network(context.student, "peer")
        self.peer_branches = context.branches(context.student, joint_classes, "peer")

    @property
    def weights(self) -> dict[str, float]:
        options = self.options
        own = {"ce": options.ce_weight, "joint": options.joint_weight}
        of_peer = {f"peer_{name}": weight for name, weight in own.items()}
        return own | of_peer | {"kd": options.kd_weight, "branches": options.branch_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        temperature = self.options.temperature
        student, peer = step.student("rotated"), self.peer(step.images("rotated"))
        own = logits_of(self.branches(student.branch_maps))
        other = logits_of(self.peer_branches(peer.branch_maps))
        own_targets, other_targets = ([logits.detach() for logits in branches] for branches in (own, other))
        from_peer = distillation_loss(student.logits, peer.logits.detach(), temperature)
        from_student = distillation_loss(peer.logits, student.logits.detach(), temperature)
        branches = branch_divergence(own, other_targets, temperature)
        peer_branches = branch_divergence(other, own_targets, temperature)
        of_peer = {f"peer_{name}": loss for name, loss in branch_label_losses(peer, other, step).items()}
        return {
            **branch_label_losses(student, own, step),
            **of_peer,
            "kd": from_peer + from_student,
            "branches": branches + peer_branches,
        }

    def stage_logits(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """Joint logits [rows, 4 * classes] of each of the student's branches."""
        return tuple(logits_of(self.branches(outputs.branch_maps)))
