"""Sweeps that are to decide a claim instead of filling a table: `python -m benchmark.run --until-decided "A > B"`."""
