"""Bring a colleague's runs into one's own: `python -m benchmark.merge DIR`.

Nothing in DIR is believed: what cannot be checked is refused and said (`benchmark.io.untrusted`). Nothing here is
overwritten but a run that failed or is damaged, and a run is written as training writes it, its record last.
"""

from benchmark.merge.merging import Kind, Merge, MergeFinding

__all__ = ["Kind", "Merge", "MergeFinding"]
