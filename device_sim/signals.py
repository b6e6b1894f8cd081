"""Seeded signals without state: every value is a function of (seed, channel, time or index).

Nothing here keeps a history, so that any reading of any device can be made at any time and again
when the outcome is checked: the same seed gives the same bytes. Wander and drift are value noise
(hashed heights at whole steps, joined smoothly), days are cosines, faults are hashed windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import cos, pi, sin

__all__ = [
    "DAY_S",
    "Channel",
    "Fault",
    "Load",
    "Seed",
    "child",
    "day",
    "drift",
    "fault",
    "gauss",
    "number",
    "unit",
    "wander",
]

DAY_S = 86_400.0
FAULT_WINDOW_S = 600.0
FAULT_SHARE = 0.02  # of a device's windows
_MASK = (1 << 64) - 1
_SCALE = 1.0 / (1 << 53)

Seed = int  # 64 bits


class Fault(IntEnum):
    """What is wrong with a device in a window of time."""

    NONE = 0
    STUCK = 1  # repeats its value of the window's beginning
    SPIKES = 2  # now and then a value far off
    SILENT_SENSOR = 3  # reports that it cannot read its sensor


def _mix(value: int) -> int:
    """Scatter 64 bits: two multiply-xorshift rounds (the finaliser of splitmix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def child(seed: Seed, channel: int) -> Seed:
    """Return a seed for a part of the thing `seed` is for; parts are independent."""
    return _mix(seed * 0x9E3779B97F4A7C15 + channel * 0xD1342543DE82EF95 + 1 & _MASK)


def unit(seed: Seed, index: int) -> float:
    """Return a number in [0, 1), evenly spread, independent for each `index`."""
    return (_mix(seed + index * 0x9E3779B97F4A7C15 & _MASK) >> 11) * _SCALE


def gauss(seed: Seed, index: int) -> float:
    """Return a number with mean 0, deviation 1 and no tail past 3.5: a sum of four units."""
    mixed = _mix(seed + index * 0x9E3779B97F4A7C15 & _MASK)
    total = (mixed & 0xFFFF) + (mixed >> 16 & 0xFFFF) + (mixed >> 32 & 0xFFFF) + (mixed >> 48)
    return (total / 65535.0 - 2.0) * 1.7320508


def wander(seed: Seed, time_s: float, step_s: float) -> float:
    """Return smooth noise in [-1, 1] that turns about once in `step_s`."""
    place = time_s / step_s
    index = int(place // 1)
    part = place - index
    before = unit(seed, index)
    ease = part * part * (3.0 - 2.0 * part)
    return 2.0 * (before + (unit(seed, index + 1) - before) * ease) - 1.0


def drift(seed: Seed, time_s: float) -> float:
    """Return the slow error of a sensor in [-1, 1]: turns over about a week."""
    return wander(seed, time_s, 7 * DAY_S)


def day(time_s: float, peak_hour: float = 15.0) -> float:
    """Return the daily cycle in [-1, 1], highest at `peak_hour` UTC."""
    return cos(2.0 * pi * (time_s / DAY_S - peak_hour / 24.0))


def fault(seed: Seed, time_s: float) -> tuple[Fault, float]:
    """Return the fault a device has at a time, and when its window began (seconds)."""
    index = int(time_s // FAULT_WINDOW_S)
    draw = unit(seed, index)
    if draw >= FAULT_SHARE:
        return Fault.NONE, index * FAULT_WINDOW_S
    return Fault(1 + int(draw / FAULT_SHARE * 3)), index * FAULT_WINDOW_S


@dataclass(slots=True, frozen=True)
class Channel:
    """One measured quantity: a level, its day, its wander, its noise, its drift, its faults."""

    seed: Seed
    level: float
    daily: float = 0.0  # amplitude of the daily cycle
    swing: float = 0.0  # amplitude of the wander
    step_s: float = 900.0  # time scale of the wander
    noise: float = 0.0  # deviation of the noise
    error: float = 0.0  # amplitude of the sensor's drift
    peak_hour: float = 15.0

    def read(self, time_s: float, index: int) -> float | None:
        """Return the value of reading `index`, or None when the sensor cannot be read."""
        kind, since_s = fault(self.seed, time_s)
        if kind:
            if kind is Fault.SILENT_SENSOR:
                return None
            if kind is Fault.STUCK:
                return self.value(since_s, 0)
            if unit(self.seed, ~index) < 0.2:
                return self.value(time_s, index) * 3.0 + 50.0
        return self.value(time_s, index)

    def value(self, time_s: float, index: int) -> float:
        """Return the value without faults."""
        seed = self.seed
        value = self.level + self.noise * gauss(seed, index)
        if self.daily:
            value += self.daily * day(time_s, self.peak_hour)
        if self.swing:
            value += self.swing * wander(seed + 1, time_s, self.step_s)
        if self.error:
            value += self.error * drift(seed + 2, time_s)
        return value


@dataclass(slots=True, frozen=True)
class Load:
    """An electrical load with a daily cycle, and bursts while something heavy runs."""

    seed: Seed
    watts: float  # mean without bursts
    burst_watts: float = 0.0
    burst_share: float = 0.05  # of windows of 300 s

    def power_w(self, time_s: float, index: int) -> float:
        """Return the power of reading `index`, never negative."""
        seed = self.seed
        power = self.watts * (1.0 + 0.6 * day(time_s, 19.0) + 0.03 * gauss(seed, index))
        if self.burst_watts and unit(seed + 3, int(time_s // 300)) < self.burst_share:
            power += self.burst_watts * (1.0 + 0.05 * gauss(seed + 4, index))
        return max(0.0, power)

    def energy_kwh(self, time_s: float, since_s: float) -> float:
        """Return the energy used from `since_s` to `time_s`; it never falls."""
        return (self._joule(time_s) - self._joule(since_s)) / 3_600_000.0

    def _joule(self, time_s: float) -> float:
        turn = 2.0 * pi * (time_s / DAY_S - 19.0 / 24.0)
        mean = self.watts + self.burst_watts * self.burst_share
        return mean * time_s + self.watts * 0.6 * sin(turn) * DAY_S / (2.0 * pi)


def number(value: float, digits: int) -> str:
    """Return a number as JavaScript prints it: at most `digits` decimals, no zeros at the end."""
    text = f"{value:.{digits}f}"
    if digits:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
