"""How like its teacher a student predicts: `python -m benchmark.faithfulness`.

A student may be accurate without predicting what its teacher predicts. This package compares the test logits of both,
image by image, for all runs of a store that kept their weights (docs/faithfulness.md).
"""
