"""`tidegate`, but its gateway tosses for the mode of each batch: `python -m tests.kit.mixed_modes`.

Which mode a drain is in is a matter of the machine's speed; here both come in any order, whatever
waits, as soon as the structured encoder is up.
"""

from __future__ import annotations

import random
import sys

from bridge.mode_governor import ModeGovernor
from tidegate.main import main

__all__ = ["toss"]


def toss(seed: int) -> None:
    """Have every governor toss from now on."""
    rng = random.Random(seed)

    def structured(_governor: ModeGovernor, _now_s: float, _waiting: int, _in_flight: int) -> bool:
        return rng.random() < 0.5

    ModeGovernor.structured = structured  # type: ignore[assignment]  # its arguments do not matter


if __name__ == "__main__":
    toss(1)
    sys.exit(main())
