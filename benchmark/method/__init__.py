"""The contract of a distillation method: all that a file in `methods/` imports from the suite."""

from benchmark.method import contract
from benchmark.method.collectives import all_gather_rows, all_reduce_mean, select_own_rows
from benchmark.method.contract import *  # noqa: F403 (what `contract.__all__` lists)
from benchmark.method.contract import ContractError

averaged = all_reduce_mean
gathered = all_gather_rows
BrokenContract = ContractError
"""Earlier names. The files in `methods/` import them, and every record holds a checksum of those files."""

__all__ = ["BrokenContract", "all_gather_rows", "all_reduce_mean", "averaged", "gathered", "select_own_rows"]
__all__ += contract.__all__
