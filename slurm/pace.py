"""How often the parts of a sweep look at each other, in seconds.

The environment variable KD_SLURM_PACE multiplies all of these times. Tests set it below 1, for their jobs too, since
the cluster hands the environment of the command that submits to the jobs.
"""

import os
import sys

NAME = "KD_SLURM_PACE"
SLOWEST = 100.0


def read_pace() -> float:
    """The factor of all times; 1, with a line on the error output, if the variable holds no such number."""
    text = os.environ.get(NAME) or "1"
    try:
        pace = float(text)
    except ValueError:
        pace = 0.0
    # A comparison with what is no number is false.
    if 0 < pace <= SLOWEST:
        return pace
    allowed = f"no number above 0 and up to {SLOWEST:.0f}"
    print(f"{NAME} = {text[:60]!r} is {allowed}, and 1 is taken; unset it, or set such a number", file=sys.stderr)
    return 1.0


PACE = read_pace()

HEARTBEAT_SECONDS = 10.0 * PACE
"""How often a job writes its state."""
FIRST_PROGRESS_SECONDS = 1.0 * PACE
"""How soon it writes its first progress."""
CHECK_SECONDS = 5.0 * PACE
"""How often a job checks whether the sweep was cancelled and whether its step daemon lives."""
SCREEN_SECONDS = 5.0 * PACE
"""How often a command that watches a sweep reads its status."""
TEND_SECONDS = 15.0 * PACE
"""How often such a command reconciles the sweep; jobs do so too, whenever one ends."""
CANCEL_SECONDS = 1.0 * PACE
"""How often `slurm.cancel` looks whether the jobs have ended."""
RETRY_SECONDS = 1.0 * PACE
"""The pause before a failed command of SLURM is tried again; it doubles with each try."""
WATCHDOG_DELAY_SECONDS = 60.0 * PACE
"""Delay of a watchdog that no other job of the sweep precedes."""
