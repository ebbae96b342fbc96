"""Records of runs: what one holds, where it is stored, who may write it."""

from benchmark.results.index import to_dataframe
from benchmark.results.record import CorruptRun
from benchmark.results.store import Store, load

__all__ = ["CorruptRun", "Store", "load", "to_dataframe"]
