"""How fast methods train, as ratios measured in one run: `python -m benchmark.speed`."""
