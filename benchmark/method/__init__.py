"""The contract of a distillation method: all that a file in `methods/` imports from the suite."""

from benchmark.method.collectives import all_gather_rows, all_reduce_mean
from benchmark.method.contract import (
    ROTATIONS,
    Context,
    ContractError,
    Method,
    MethodOptions,
    Mixture,
    Network,
    Outputs,
    PastNetwork,
    PredictionHistory,
    Shape,
    Step,
    UserError,
    View,
    full_precision,
    joint_labels,
    outside_autocast,
    statistics_kept,
    upright,
)

averaged = all_reduce_mean
gathered = all_gather_rows
BrokenContract = ContractError
"""Earlier names. The files in `methods/` import them, and every record holds a checksum of those files."""

__all__ = [
    "ROTATIONS",
    "BrokenContract",
    "Context",
    "ContractError",
    "Method",
    "MethodOptions",
    "Mixture",
    "Network",
    "Outputs",
    "PastNetwork",
    "PredictionHistory",
    "Shape",
    "Step",
    "UserError",
    "View",
    "all_gather_rows",
    "all_reduce_mean",
    "averaged",
    "full_precision",
    "gathered",
    "joint_labels",
    "outside_autocast",
    "statistics_kept",
    "upright",
]
