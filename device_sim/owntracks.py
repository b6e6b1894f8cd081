"""Vehicles that report where they are, as the OwnTracks apps do.

Shape: `owntracks/{user}/{device}`, one `_type: location` JSON object a message. A vehicle has a
few places; each half hour it drives to the next one or stays. Positions are a function of time, so
speed and course follow from two of them.
"""

from __future__ import annotations

from math import atan2, cos, degrees, hypot, pi, radians, sin

from device_sim.signals import Fault, Seed, child, fault, gauss, unit, wander

__all__ = ["Vehicle"]

_LEG_S = 1800.0
_PLACES = 5
_METRES_A_DEGREE = 111_320.0
_CITIES = ((52.52, 13.405), (41.387, 2.17), (59.33, 18.065), (-10.98, -37.05), (35.68, 139.76))


class Vehicle:
    """One vehicle of a fleet around a city."""

    __slots__ = ("_home", "_topic", "client_id", "seed")

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"veh{index:05}"
        self._topic = f"owntracks/fleet/{self.client_id}"
        self.seed = seed
        self._home = _CITIES[child(seed, 1) % len(_CITIES)]

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        seed = self.seed
        lat, lon = self._position(time_s)
        before = self._position(time_s - 5.0)
        north_m = (lat - before[0]) * _METRES_A_DEGREE
        east_m = (lon - before[1]) * _METRES_A_DEGREE * cos(radians(lat))
        speed_kmh = hypot(north_m, east_m) / 5.0 * 3.6
        lost = fault(seed + 3, time_s)[0] is not Fault.NONE  # under a roof: the fix is poor
        accuracy_m = round(5 + 3 * unit(seed, index)) if not lost else 65 + index % 150
        error = accuracy_m / 3.0 / _METRES_A_DEGREE
        lat += error * gauss(seed + 1, index)
        lon += error * gauss(seed + 2, index)
        moving = speed_kmh >= 1.0
        course = f'"cog":{round(degrees(atan2(east_m, north_m))) % 360},' if moving else ""
        battery = round(60 + 39 * wander(seed + 4, time_s, 14_400.0))
        text = (
            f'{{"_type":"location","acc":{accuracy_m},"batt":{battery},{course}"conn":"m",'
            f'"lat":{lat:.6f},"lon":{lon:.6f},"m":1,"t":"{"u" if moving else "t"}",'
            f'"tid":"{self.client_id[-2:]}","tst":{int(time_s)},"vel":{round(speed_kmh)}}}'
        )
        return self._topic, text.encode()

    def _position(self, time_s: float) -> tuple[float, float]:
        """Return latitude and longitude: eased from place to place, bent a little like a road."""
        leg = int(time_s // _LEG_S)
        part = time_s / _LEG_S - leg
        here, there = self._place(leg), self._place(leg + 1)
        ease = part * part * (3.0 - 2.0 * part)
        bend = sin(pi * part) * 0.2 * sin(6.0 * pi * part)
        north, east = there[0] - here[0], there[1] - here[1]
        return (
            here[0] + north * ease - east * bend,
            here[1] + east * ease + north * bend,
        )

    def _place(self, leg: int) -> tuple[float, float]:
        """Return where the vehicle is at the beginning of a leg."""
        seed = self.seed
        while unit(seed + 5, leg) < 0.4:  # stays where it was
            leg -= 1
        place = int(unit(seed + 6, leg) * _PLACES)
        return (
            self._home[0] + 0.12 * (unit(seed + 7, place) - 0.5),
            self._home[1] + 0.16 * (unit(seed + 8, place) - 0.5),
        )
