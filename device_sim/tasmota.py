"""Tasmota devices: at each telemetry period a SENSOR and a STATE message.

Shape: `tele/{topic}/SENSOR` and `tele/{topic}/STATE`, JSON with the device's local time first;
energy meters, DS18B20 and BME280 sensors; a sensor that cannot be read says null.
"""

from __future__ import annotations

from datetime import UTC, datetime

from device_sim.signals import DAY_S, Channel, Load, Seed, child, unit, wander

__all__ = ["Tasmota"]

_SSIDS = ("Plant-IoT", "Home", "Workshop")


class Tasmota:
    """A device whose even readings are SENSOR and whose odd ones are STATE."""

    __slots__ = (
        "_booted_s",
        "_bssid",
        "_channels",
        "_load",
        "_since_s",
        "_state_topic",
        "_topic",
        "client_id",
        "seed",
    )

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"tasmota_{index:06X}"
        self._topic = f"tele/{self.client_id}/SENSOR"
        self._state_topic = f"tele/{self.client_id}/STATE"
        self.seed = seed
        bits = f"{child(seed, 90):016X}"
        self._bssid = ":".join(bits[at : at + 2] for at in range(0, 12, 2))
        self._booted_s = 1_700_000_000 + 2.5e7 * unit(seed, 91)
        self._since_s = int(1_680_000_000 + 1.5e7 * unit(seed, 92))
        self._load: Load | None = None
        self._channels: tuple[Channel, ...] = ()
        kind = (index + index // 20) % 4  # a mixed fleet has only some indices, yet every kind
        if kind < 2:
            self._load = Load(child(seed, 1), 20 + 200 * unit(seed, 1), 900 * unit(seed, 2))
            return
        level = 19 + 5 * unit(seed, 1)
        temperature = Channel(child(seed, 1), level, daily=3, swing=1, noise=0.06, error=0.4)
        if kind == 2:
            self._channels = (temperature,)
        else:
            humidity = Channel(child(seed, 2), 50, daily=-9, swing=5, noise=0.4, error=2)
            pressure = Channel(child(seed, 3), 1008, swing=10, step_s=DAY_S, noise=0.1)
            self._channels = (temperature, humidity, pressure)

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        stamp = datetime.fromtimestamp(int(time_s), UTC).strftime("%Y-%m-%dT%H:%M:%S")
        if index % 2:
            return self._state_topic, self._state(index, time_s, stamp).encode()
        if self._load is not None:
            body = self._energy(self._load, index, time_s)
        else:
            body = self._climate(index, time_s)
        return self._topic, f'{{"Time":"{stamp}",{body}}}'.encode()

    def _energy(self, load: Load, index: int, time_s: float) -> str:
        midnight_s = time_s // DAY_S * DAY_S
        power = load.power_w(time_s, index)
        voltage = 230 + 6 * wander(self.seed + 6, time_s, 600.0)
        factor = min(1.0, 0.93 + 0.04 * wander(self.seed + 7, time_s, 900.0))
        apparent = power / factor
        reactive = (apparent * apparent - power * power) ** 0.5
        started = datetime.fromtimestamp(self._since_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return (
            f'"ENERGY":{{"TotalStartTime":"{started}",'
            f'"Total":{max(0.0, load.energy_kwh(time_s, self._since_s)):.3f},'
            f'"Yesterday":{load.energy_kwh(midnight_s, midnight_s - DAY_S):.3f},'
            f'"Today":{load.energy_kwh(time_s, midnight_s):.3f},"Period":{power / 60:.0f},'
            f'"Power":{power:.0f},"ApparentPower":{apparent:.0f},'
            f'"ReactivePower":{reactive:.0f},"Factor":{factor:.2f},"Voltage":{voltage:.0f},'
            f'"Current":{apparent / voltage:.3f}}}'
        )

    def _climate(self, index: int, time_s: float) -> str:
        values = [channel.read(time_s, index) for channel in self._channels]
        texts = ["null" if value is None else f"{value:.1f}" for value in values]
        if len(texts) == 1:
            sensor = f'"DS18B20":{{"Id":"{child(self.seed, 93):012X}","Temperature":{texts[0]}}}'
            return f'{sensor},"TempUnit":"C"'
        dew = "null"
        if values[0] is not None and values[1] is not None:
            dew = f"{values[0] - (100 - values[1]) / 5:.1f}"
        return (
            f'"BME280":{{"Temperature":{texts[0]},"Humidity":{texts[1]},"DewPoint":{dew},'
            f'"Pressure":{texts[2]}}},"PressureUnit":"hPa","TempUnit":"C"'
        )

    def _state(self, index: int, time_s: float, stamp: str) -> str:
        seed = self.seed
        up = int(time_s - self._booted_s) % 8_640_000
        days, rest = divmod(up, 86_400)
        uptime = f"{days}T{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
        rssi = round(65 + 25 * wander(seed + 8, time_s, 1200.0))
        return (
            f'{{"Time":"{stamp}","Uptime":"{uptime}","UptimeSec":{up},'
            f'"Heap":{25 + int(5 * unit(seed, index))},"SleepMode":"Dynamic","Sleep":50,'
            f'"LoadAvg":19,"MqttCount":{1 + int(8 * unit(seed, 94))},"POWER":"ON",'
            f'"Wifi":{{"AP":1,"SSId":"{_SSIDS[seed % 3]}","BSSId":"{self._bssid}",'
            f'"Channel":{1 + 5 * (seed % 3)},"Mode":"11n","RSSI":{rssi},'
            f'"Signal":{rssi // 2 - 100},"LinkCount":{1 + int(4 * unit(seed, 95))},'
            f'"Downtime":"0T00:00:05"}}}}'
        )
