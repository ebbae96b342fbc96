"""LSSKD without one of its parts at a time: the rows of an ablation (LSSKD paper, section V)."""

from __future__ import annotations

from pydantic import Field

from methods.lsskd import LSSKD


class LSSKDHard(LSSKD):
    """LSSKD with one-hot labels everywhere: no past softens those of the head (1) or of the branches (2)."""

    name = "LSSKD-hard"
    equation = "L = L_ce + L_h + beta L_kl + gamma L_f, all labels one-hot (equations 3 to 9)"
    remark = "LSSKD without softened labels"

    class Options(LSSKD.Options):
        alpha: float = Field(0.0, ge=0, le=1, description="R1: trust in the past, a_T of (1) and (2)")


class LSSKDWithoutKL(LSSKD):
    """LSSKD whose deeper branches do not teach the shallower ones: without L_kl (7)."""

    name = "LSSKD-no-kl"
    equation = "L = L_ce + L_h + gamma L_f, labels softened by the epoch before (equations 1 to 6, 8)"
    remark = "LSSKD without the divergence between branches"
    in_default_grid = False

    class Options(LSSKD.Options):
        beta: float = Field(0.0, ge=0, description="R3: weight beta, of L_kl unless weighting says otherwise")


class LSSKDWithoutFeatures(LSSKD):
    """LSSKD whose branches need not have the last layer's pooled features: without L_f (8)."""

    name = "LSSKD-no-feature"
    equation = "L = L_ce + L_h + beta L_kl, labels softened by the epoch before (equations 1 to 7)"
    remark = "LSSKD without the distance between pooled features"
    in_default_grid = False

    class Options(LSSKD.Options):
        gamma: float = Field(0.0, ge=0, description="R4: weight gamma of L_f")


class LSSKDHeadOnly(LSSKD):
    """LSSKD that softens the labels of the head (1) only; the branches learn one-hot ones (3)."""

    name = "LSSKD-head-only"
    equation = "L = L_ce + L_h + beta L_kl + gamma L_f, L_ce alone with softened labels (equations 1, 3 to 9)"
    remark = "LSSKD without softened labels on the branches"
    in_default_grid = False

    class Options(LSSKD.Options):
        soften_joint: bool = Field(False, description="R1: soften the branches' labels (2) too; false: one-hot ones")


class LSSKDOneBranch(LSSKD):
    """LSSKD with the deepest branch alone, which leaves L_kl (7) and L_f (8) nothing to teach."""

    name = "LSSKD-1-branch"
    equation = "L = L_ce + L_h of the deepest branch, labels softened by the epoch before (equations 1 to 6)"
    remark = "LSSKD with the deepest branch only, hence without the losses between branches"
    in_default_grid = False

    class Options(LSSKD.Options):
        branches: int | None = Field(
            1, ge=1, description="so many branches, on the deepest stages; none: one on every stage"
        )


class LSSKDTwoBranches(LSSKD):
    """LSSKD with branches on the two deepest stages only."""

    name = "LSSKD-2-branches"
    equation = "L = L_ce + L_h + beta L_kl + gamma L_f of the two deepest branches (equations 1 to 9)"
    remark = "LSSKD without the branches before the last two"
    in_default_grid = False

    class Options(LSSKD.Options):
        branches: int | None = Field(
            2, ge=1, description="so many branches, on the deepest stages; none: one on every stage"
        )
