"""Shelly devices of the first and second generation: metering switches and climate sensors.

Shape: Gen1 publishes plain values under `shellies/{id}/...` and its whole status as JSON on
`shellies/{id}/info`; Gen2 publishes JSON under `{id}/status/{component}` and NotifyStatus
notifications on `{id}/events/rpc`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from device_sim.signals import Channel, Load, Seed, child, number, unit, wander

__all__ = ["Gen1Switch", "Gen2Climate", "Gen2Switch", "shelly"]


def shelly(index: int, seed: Seed) -> Gen1Switch | Gen2Switch | Gen2Climate:
    """Return device `index` of the profile: of four, two Gen2 switches, one of each other."""
    kind = (index + index // 20) % 4  # a mixed fleet has only some indices, yet every kind
    if kind < 2:
        return Gen2Switch(index, seed)
    return Gen1Switch(index, seed) if kind == 2 else Gen2Climate(index, seed)


def _mac(index: int, seed: Seed) -> str:
    return f"{child(seed, 99) & 0xFFFFFF:06x}{index:06x}"


class _Switch:
    """A switched, metered load with the temperature of its case."""

    __slots__ = ("_case", "_load", "_mac", "_since_s", "client_id", "seed")

    def __init__(self, client_id: str, mac: str, seed: Seed) -> None:
        self.client_id = client_id
        self.seed = seed
        self._mac = mac
        self._load = Load(child(seed, 1), 10 + 90 * unit(seed, 1), 1100 * unit(seed, 2))
        self._case = Channel(child(seed, 2), 44, daily=4, swing=3, noise=0.1, error=0.5)
        self._since_s = 1_700_000_000 + 3e7 * unit(seed, 3)

    def _on(self, time_s: float) -> bool:
        return unit(self.seed + 5, int(time_s // 1200)) > 0.15

    def _power_w(self, time_s: float, index: int) -> float:
        return self._load.power_w(time_s, index) if self._on(time_s) else 0.0

    def _energy_wh(self, time_s: float) -> float:
        return max(0.0, 1000.0 * self._load.energy_kwh(time_s, self._since_s))

    def _rssi(self, time_s: float) -> int:
        return round(-62 + 14 * wander(self.seed + 8, time_s, 1200.0))


class Gen1Switch(_Switch):
    """A Shelly 1PM: three plain values and one JSON status in turn."""

    __slots__ = ("_base",)

    def __init__(self, index: int, seed: Seed) -> None:
        mac = _mac(index, seed).upper()
        super().__init__(f"shelly1pm-{mac}", mac, seed)
        self._base = f"shellies/{self.client_id}"

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        turn = index % 4
        if turn == 0:
            power = self._power_w(time_s, index)
            return f"{self._base}/relay/0/power", f"{power:.2f}".encode()
        if turn == 1:
            minutes = int(self._energy_wh(time_s) * 60)
            return f"{self._base}/relay/0/energy", b"%d" % minutes
        if turn == 2:
            case = self._case.read(time_s, index)
            # 999 is what the first generation says of a sensor it cannot read
            return f"{self._base}/temperature", f"{999 if case is None else case:.2f}".encode()
        return f"{self._base}/info", self._info(index, time_s).encode()

    def _info(self, index: int, time_s: float) -> str:
        power = self._power_w(time_s, index)
        case = self._case.value(time_s, index)
        clock = datetime.fromtimestamp(int(time_s), UTC).strftime("%H:%M")
        on = "true" if self._on(time_s) else "false"
        return (
            f'{{"wifi_sta":{{"connected":true,"ssid":"Home","ip":"192.168.1.{self.seed % 250}",'
            f'"rssi":{self._rssi(time_s)}}},"cloud":{{"enabled":false,"connected":false}},'
            f'"mqtt":{{"connected":true}},"time":"{clock}","unixtime":{int(time_s)},'
            f'"serial":{index},"has_update":false,"mac":"{self._mac}",'
            f'"relays":[{{"ison":{on},"has_timer":false,"overpower":false,"source":"mqtt"}}],'
            f'"meters":[{{"power":{power:.2f},"overpower":0.00,"is_valid":true,'
            f'"timestamp":{int(time_s)},"counters":[{power:.3f}, {power * 0.98:.3f}, '
            f'{power * 1.01:.3f}],"total":{int(self._energy_wh(time_s) * 60)}}}],'
            f'"inputs":[{{"input":0,"event":"","event_cnt":0}}],"temperature":{case:.2f},'
            f'"overtemperature":false,"tmp":{{"tC":{case:.2f},"tF":{case * 1.8 + 32:.2f},'
            f'"is_valid":true}},"ram_total":50376,"ram_free":{36_000 + index % 700},'
            f'"fs_size":233681,"fs_free":149596,"uptime":{int(time_s - self._since_s) % 10**7}}}'
        )


class Gen2Switch(_Switch):
    """A Shelly Plus 1PM: a status after every third notification."""

    __slots__ = ()

    def __init__(self, index: int, seed: Seed) -> None:
        mac = _mac(index, seed)
        super().__init__(f"shellyplus1pm-{mac}", mac, seed)

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        power = self._power_w(time_s, index)
        voltage = 231 + 5 * wander(self.seed + 6, time_s, 600.0)
        minute = power / 60 * 1000
        energy = (
            f'"aenergy":{{"total":{self._energy_wh(time_s):.3f},"by_minute":[{minute:.3f},'
            f'{minute * 0.99:.3f},{minute * 1.01:.3f}],"minute_ts":{int(time_s // 60 * 60)}}}'
        )
        measured = (
            f'"apower":{number(power, 1)},"voltage":{number(voltage, 1)},'
            f'"current":{number(power / voltage, 3)}'
        )
        if index % 4:
            text = (
                f'{{"src":"{self.client_id}","dst":"{self.client_id}/events",'
                f'"method":"NotifyStatus","params":{{"ts":{time_s:.2f},'
                f'"switch:0":{{"id":0,{measured},{energy}}}}}}}'
            )
            return f"{self.client_id}/events/rpc", text.encode()
        case = self._case.read(time_s, index)
        heat = '"tC":null,"tF":null'
        if case is not None:
            heat = f'"tC":{number(case, 1)},"tF":{number(case * 1.8 + 32, 1)}'
        on = "true" if self._on(time_s) else "false"
        text = (
            f'{{"id":0,"source":"MQTT","output":{on},{measured},{energy},"temperature":{{{heat}}}}}'
        )
        return f"{self.client_id}/status/switch:0", text.encode()


class Gen2Climate:
    """A Shelly Plus H&T: temperature, humidity and battery in turn."""

    __slots__ = ("_humidity", "_temperature", "client_id", "seed")

    def __init__(self, index: int, seed: Seed) -> None:
        self.client_id = f"shellyplusht-{_mac(index, seed)}"
        self.seed = seed
        self._temperature = Channel(child(seed, 1), 20, daily=2, swing=1, noise=0.05, error=0.3)
        self._humidity = Channel(child(seed, 2), 46, daily=-7, swing=4, noise=0.3, error=1.5)

    def reading(self, index: int, time_s: float) -> tuple[str, bytes]:
        """Return topic and payload of reading `index`."""
        turn = index % 3
        status = f"{self.client_id}/status"
        if turn == 0:
            value = self._temperature.read(time_s, index)
            if value is None:
                return f"{status}/temperature:0", b'{"id":0,"tC":null,"tF":null,"errors":["read"]}'
            text = f'{{"id":0,"tC":{number(value, 1)},"tF":{number(value * 1.8 + 32, 1)}}}'
            return f"{status}/temperature:0", text.encode()
        if turn == 1:
            value = self._humidity.read(time_s, index)
            if value is None:
                return f"{status}/humidity:0", b'{"id":0,"rh":null,"errors":["read"]}'
            return f"{status}/humidity:0", f'{{"id":0,"rh":{number(value, 1)}}}'.encode()
        left = 1.0 - (time_s / 31_536_000.0 + unit(self.seed, 900)) % 1.0
        text = (
            f'{{"id":0,"battery":{{"V":{4.2 + 1.8 * left:.2f},"percent":{round(100 * left)}}},'
            f'"external":{{"present":false}}}}'
        )
        return f"{status}/devicepower:0", text.encode()
