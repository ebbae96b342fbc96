"""Records of runs: what one holds, where it is stored, who may write it."""

from benchmark.results.frame import frame_of
from benchmark.results.record import DamagedRun
from benchmark.results.store import Store, load

__all__ = ["DamagedRun", "Store", "frame_of", "load"]
