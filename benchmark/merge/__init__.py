"""Bring a colleague's runs into one's own: `python -m benchmark.merge DIR`.

Nothing in DIR is trusted: what cannot be checked is refused and reported (`benchmark.io.untrusted`). Of one's own runs
only those that failed or are damaged are replaced. A run is written as training writes it, its record last.
"""

from benchmark.merge.merging import Kind, Merge, MergeFinding

__all__ = ["Kind", "Merge", "MergeFinding"]
