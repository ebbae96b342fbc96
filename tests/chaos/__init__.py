"""A fault harness: a small sweep is killed and its files are damaged, and in the end not a bit may differ.

Workers are processes that train the sweep, or part of it, in one folder at the same time, as the jobs of several users
or of a cluster do. They are forked, so that no time goes into importing; each is what `benchmark.run --workers 1` does.
"""
