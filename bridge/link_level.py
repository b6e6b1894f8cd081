"""How hard mode 0 compresses: by the link's speed and what compressing costs here. Pure.

Theory of operation. A batch costs CPU to encode and time on the link to send. While encoding takes
a small part of the time on the link, a higher level is as good as free, and the fewer bytes get
through sooner: the level rises. Where it takes a larger part, or so long that it would hold the
loop, the level falls. A link whose speed is not known, or a machine that is busy with other things,
which shows as encoding that takes longer, is left at the lowest.

While the window is full, encoding is not what readings wait for: then it may take a larger part.
If it is the link they wait for, fewer bytes are a faster drain, and cheaper ones than those of the
structured mode: level 6 takes 0.8 us a reading for each byte it saves of small JSON, where the
structured mode takes about 3 at both ends together.

Measured (five traces, geometric mean of bytes a reading against level 3): level 1 takes 1% more at
batches of 50 and the same at 500, at 0.7 times the CPU there; level 6 takes 4% and 8% less, level 9
6% and 12% less, at 1.8 and 2.2 times the CPU; level 19 takes 10% and 23% less at fifty times the
CPU, which would hold the loop for 50 ms.
"""

from __future__ import annotations

__all__ = ["LEVELS", "LEVEL_BESIDE", "LevelGovernor"]

LEVELS = (1, 6, 9)
LEVEL_BESIDE = 3  # of what the structured mode's encoder leaves to mode 0
SHARE_MAX = 0.08  # of a batch's time on the link that encoding may take
SHARE_EASY = 0.02  # below it the next level is tried: one step costs no more than three times
FULL_SHARE_MAX = 0.4  # the same while the window is full: the loop has devices to serve as well,
FULL_SHARE_EASY = 0.15  # and one step costs no more than two and a half times in all
HOLD_MAX_S = 0.004  # of encoding one batch
HOLD_EASY_S = 0.0015
PATIENCE = 8  # batches in a row that must be easy
_FADE = 0.3  # weight of the newest batch


class LevelGovernor:
    """Chooses the level of the next batch.

    Args:
        level: As configured; 0 = by itself.
    """

    __slots__ = ("_at", "_easy", "_fixed", "_full", "_held_s", "_share")

    def __init__(self, level: int) -> None:
        self._fixed = level
        self._at = 0
        self._full = 0.0  # how often the window was, lately
        self._begin()

    def _begin(self) -> None:
        self._easy = 0
        self._share: float | None = None
        self._held_s = 0.0

    @property
    def level(self) -> int:
        """The zstd level to use now."""
        return self._fixed or LEVELS[self._at]

    def encoded(
        self, took_s: float, batch_bytes: int, rate_bytes_s: float | None, *, full: bool = False
    ) -> None:
        """Note a batch of mode 0.

        Args:
            took_s: What encoding it took.
            batch_bytes: Its size.
            rate_bytes_s: What the link carries; None while that is not known.
            full: The window was nearly full when it was made.
        """
        self._full = _faded(self._full, full)
        if rate_bytes_s is None:
            self._fall()
            return
        share = took_s * rate_bytes_s / max(1, batch_bytes)
        first = self._share is None
        self._share = share if self._share is None else _faded(self._share, share)
        self._held_s = took_s if first else _faded(self._held_s, took_s)
        most, easy = SHARE_MAX, SHARE_EASY
        if self._full > 0.5:
            most, easy = FULL_SHARE_MAX, FULL_SHARE_EASY
        if self._share > most or self._held_s > HOLD_MAX_S:
            self._fall()
        elif self._share < easy and self._held_s < HOLD_EASY_S:
            self._easy += 1
            if self._easy >= PATIENCE and self._at < len(LEVELS) - 1:
                self._at += 1
                self._begin()
        else:
            self._easy = 0

    def _fall(self) -> None:
        if self._at:
            self._at -= 1
        self._begin()


def _faded(known: float, newest: float) -> float:
    return known + (newest - known) * _FADE
