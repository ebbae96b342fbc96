"""Who trains the jobs of a plan on this machine, and in which order."""
