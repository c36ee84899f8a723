"""What a run of the study says while it goes on."""

from __future__ import annotations

import sys
import time


def say(line: str) -> None:
    """On stderr and at once, with the time of day: a run that is cut off has told how far it
    came."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
