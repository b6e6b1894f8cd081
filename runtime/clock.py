"""Clocks as arguments: the one place, beside the asyncio drivers, where time is read.

Everything else takes `now_s` or a `Clock`, so that tests own the time (STYLE 7).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """The three times a service needs."""

    def monotonic_s(self) -> float:
        """Return seconds since boot, suspend included: never steps back within one boot."""
        ...

    def wall_us(self) -> int:
        """Return microseconds since 1970 UTC as the machine believes; may be wrong, may jump."""
        ...

    def boot_id(self) -> str:
        """Return an id that is new after every boot of the machine."""
        ...


class SystemClock:
    """The machine's own clocks."""

    __slots__ = ("_boot_id",)

    def __init__(self) -> None:
        try:
            self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except OSError:
            self._boot_id = "unknown"

    def monotonic_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def boot_id(self) -> str:
        return self._boot_id


class ManualClock:
    """A clock that moves only when told: for tests and for compressed time."""

    __slots__ = ("boot", "mono_s", "wall")

    def __init__(
        self,
        wall_us: int = 1_700_000_000_000_000,
        monotonic_s: float = 100.0,
        boot_id: str = "boot-1",
    ) -> None:
        self.wall = wall_us
        self.mono_s = monotonic_s
        self.boot = boot_id

    def monotonic_s(self) -> float:
        return self.mono_s

    def wall_us(self) -> int:
        return self.wall

    def boot_id(self) -> str:
        return self.boot

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self.mono_s += seconds
        self.wall += round(seconds * 1_000_000)

    def set_wall(self, wall_us: int) -> None:
        """Step the wall clock, as NTP or a wrong RTC does; monotonic time is untouched."""
        self.wall = wall_us
