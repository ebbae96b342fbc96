"""Sweeps on a SLURM cluster: what submits their jobs and follows them, and a one-machine cluster to test that on."""
