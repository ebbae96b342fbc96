"""How fast training, decoding and planning are, as ratios measured in one run: `python -m benchmark.speed`."""
