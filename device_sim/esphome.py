"""ESPHome nodes: one plain number as text a message, each sensor on its own topic.

Shape: `{node}/sensor/{node}_{name}/state`, with the sensor's number of decimals; "nan" when it
cannot be read.
"""

from __future__ import annotations

from device_sim.signals import DAY_S, Channel, Seed, child, unit

__all__ = ["EspHome"]

_ROOMS = ("attic", "garage", "lab", "kitchen", "cellar", "office")


class EspHome:
    """A node with six sensors that report in turn."""

    __slots__ = ("_sensors", "client_id", "seed")

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"esp-{_ROOMS[seed % len(_ROOMS)]}-{index}"
        self.seed = seed
        node = self.client_id
        level = 17 + 8 * unit(seed, 1)
        sensors = (
            ("temperature", 2, Channel(child(seed, 1), level, 3, 1.2, noise=0.04, error=0.4)),
            ("humidity", 1, Channel(child(seed, 2), 50, -8, 5, noise=0.3, error=2)),
            ("co2", 0, Channel(child(seed, 3), 620, 150, 180, 1800, 6, 20)),
            ("pressure", 1, Channel(child(seed, 4), 1008, 0, 9, DAY_S, 0.1)),
            ("wifi_signal", 0, Channel(child(seed, 5), -61, 0, 9, 600, 1.5)),
            ("uptime", 0, None),
        )
        self._sensors = tuple(
            (f"{node}/sensor/{node}_{name}/state", digits, channel)
            for name, digits, channel in sensors
        )

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        topic, digits, channel = self._sensors[index % len(self._sensors)]
        if channel is None:
            return topic, b"%d" % (time_s % 8_640_000)
        value = channel.read(time_s, index)
        return topic, b"nan" if value is None else f"{value:.{digits}f}".encode()
