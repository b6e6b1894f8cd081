"""Devices behind Zigbee2MQTT: climate sensors, plugs, motion and contact sensors.

Shape: one JSON object a message on `zigbee2mqtt/{friendly name}`, keys in alphabetical order,
numbers as JavaScript prints them, null for what cannot be read.
"""

from __future__ import annotations

from device_sim.signals import Channel, Load, Seed, child, day, gauss, number, unit, wander

__all__ = ["Climate", "Contact", "Motion", "Plug", "zigbee2mqtt"]


def zigbee2mqtt(index: int, seed: Seed) -> Climate | Plug | Motion | Contact:
    """Return device `index` of the profile: of ten, four climate, three plugs, two motion."""
    kind = (index + index // 20) % 10  # a mixed fleet has only some indices, yet every kind
    if kind < 4:
        return Climate(index, seed)
    if kind < 7:
        return Plug(index, seed)
    return Motion(index, seed) if kind < 9 else Contact(index, seed)


def _or_null(value: float | None, digits: int) -> str:
    return "null" if value is None else number(value, digits)


def _battery(seed: Seed, time_s: float) -> tuple[int, int]:
    """Return percent and millivolts: full to empty in about two years, then a new cell."""
    left = 1.0 - (time_s / 63_072_000.0 + unit(seed, 900)) % 1.0
    return round(100 * left), round(2500 + 600 * left)


def _linkquality(seed: Seed, time_s: float, index: int) -> int:
    return round(110 + 80 * wander(seed + 9, time_s, 1800.0) + 3 * gauss(seed + 8, index))


class Climate:
    """Temperature, humidity and pressure on a battery."""

    __slots__ = ("_humidity", "_pressure", "_temperature", "client_id", "seed", "topic")

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"climate_{index}"
        self.topic = f"zigbee2mqtt/climate_{index}"
        self.seed = seed
        self._temperature = Channel(
            child(seed, 1), 18 + 6 * unit(seed, 1), daily=2.5, swing=0.8, noise=0.05, error=0.3
        )
        self._humidity = Channel(
            child(seed, 2), 48, daily=-8, swing=4, noise=0.3, error=2, peak_hour=15
        )
        self._pressure = Channel(child(seed, 3), 1009, swing=9, step_s=86_400, noise=0.1)

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        battery, millivolts = _battery(self.seed, time_s)
        temperature = self._temperature.read(time_s, index)
        humidity = self._humidity.read(time_s, index)
        text = (
            f'{{"battery":{battery},"humidity":{_or_null(humidity, 2)},'
            f'"linkquality":{_linkquality(self.seed, time_s, index)},'
            f'"pressure":{number(self._pressure.value(time_s, index), 1)},'
            f'"temperature":{_or_null(temperature, 2)},"voltage":{millivolts}}}'
        )
        return self.topic, text.encode()


class Plug:
    """A metering plug that is switched off now and then."""

    __slots__ = ("_load", "_since_s", "client_id", "seed", "topic")

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"plug_{index}"
        self.topic = f"zigbee2mqtt/plug_{index}"
        self.seed = seed
        self._load = Load(child(seed, 1), 15 + 120 * unit(seed, 1), 1400 * unit(seed, 2))
        self._since_s = 1_700_000_000 + 3e7 * unit(seed, 3)

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        on = unit(self.seed + 5, int(time_s // 1800)) > 0.08
        voltage = 230 + 6 * wander(self.seed + 6, time_s, 600.0)
        power = self._load.power_w(time_s, index) if on else 0.0
        energy = max(0.0, self._load.energy_kwh(time_s, self._since_s))
        text = (
            f'{{"child_lock":"UNLOCK","current":{number(power / voltage, 2)},'
            f'"energy":{number(energy, 2)},"indicator_mode":"off/on",'
            f'"linkquality":{_linkquality(self.seed, time_s, index)},"power":{number(power, 0)},'
            f'"power_outage_memory":"restore","state":"{"ON" if on else "OFF"}",'
            f'"update":{{"installed_version":192,"latest_version":192,"state":"idle"}},'
            f'"update_available":false,"voltage":{number(voltage, 0)}}}'
        )
        return self.topic, text.encode()


class Motion:
    """Occupancy in bursts, more by day than by night, with the light of the room."""

    __slots__ = ("_light", "client_id", "seed", "topic")

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"motion_{index}"
        self.topic = f"zigbee2mqtt/motion_{index}"
        self.seed = seed
        self._light = Channel(child(seed, 1), 90, daily=260, swing=60, noise=3, peak_hour=13)

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        battery, millivolts = _battery(self.seed, time_s)
        chance = 0.25 + 0.2 * day(time_s, 16.0)
        occupied = unit(self.seed + 5, int(time_s // 90)) < chance
        lux = max(0, round(self._light.value(time_s, index)))
        text = (
            f'{{"battery":{battery},"device_temperature":{24 + int(4 * unit(self.seed, 7))},'
            f'"illuminance":{lux},"illuminance_lux":{lux},'
            f'"linkquality":{_linkquality(self.seed, time_s, index)},'
            f'"occupancy":{"true" if occupied else "false"},"power_outage_count":5,'
            f'"voltage":{millivolts}}}'
        )
        return self.topic, text.encode()


class Contact:
    """A door or window."""

    __slots__ = ("client_id", "seed", "topic")

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"contact_{index}"
        self.topic = f"zigbee2mqtt/contact_{index}"
        self.seed = seed

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        battery, millivolts = _battery(self.seed, time_s)
        closed = unit(self.seed + 5, int(time_s // 240)) > 0.2 + 0.1 * day(time_s, 12.0)
        text = (
            f'{{"battery":{battery},"battery_low":{"true" if battery < 10 else "false"},'
            f'"contact":{"true" if closed else "false"},'
            f'"linkquality":{_linkquality(self.seed, time_s, index)},"tamper":false,'
            f'"voltage":{millivolts}}}'
        )
        return self.topic, text.encode()
