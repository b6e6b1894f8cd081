"""Profiles: what a fleet is made of. Each name gives device `index` as a `Model`.

Invariant: a model's client id is unique in its fleet, and `reading(n, t)` depends only on the
model's seed, `n` and `t`: any reading can be made again, in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from device_sim.esphome import EspHome
from device_sim.owntracks import Vehicle
from device_sim.shelly import shelly
from device_sim.signals import Seed, child
from device_sim.tasmota import Tasmota
from device_sim.zigbee2mqtt import zigbee2mqtt

__all__ = ["MAKERS", "Model", "make_model"]


class Model(Protocol):
    """One device: what it is called and what it says."""

    @property
    def client_id(self) -> str:
        """The MQTT client id it connects with."""
        ...

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`, taken at `time_s` (since 1970 UTC)."""
        ...


Maker = Callable[[int, Seed], Model]

# Of twenty devices of a mixed fleet; shapes are interleaved so that any small fleet has most.
_MIX: tuple[Maker, ...] = (
    zigbee2mqtt, Tasmota, shelly, EspHome, Vehicle, zigbee2mqtt, shelly, Tasmota, zigbee2mqtt,
    EspHome, zigbee2mqtt, Tasmota, shelly, Vehicle, zigbee2mqtt, EspHome, Tasmota, zigbee2mqtt,
    shelly, zigbee2mqtt,
)  # fmt: skip


def _mixed(index: int, seed: Seed) -> Model:
    return _MIX[index % len(_MIX)](index, seed)


MAKERS: dict[str, Maker] = {
    "mixed": _mixed,
    "zigbee2mqtt": zigbee2mqtt,
    "tasmota": Tasmota,
    "shelly": shelly,
    "esphome": EspHome,
    "owntracks": Vehicle,
}


def make_model(profile: str, index: int, seed: Seed) -> Model:
    """Return device `index` of the fleet that `profile` and `seed` name.

    Raises:
        ValueError: no profile of that name.
    """
    maker = MAKERS.get(profile)
    if maker is None:
        raise ValueError(f"unknown profile '{profile}'; there are: {', '.join(MAKERS)}")
    return maker(index, child(seed, index))
