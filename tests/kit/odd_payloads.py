"""Seeded payloads of odd software: what no codec was made for, to see that none is hurt by it.

CSV, XML, CBOR, MessagePack, hexadecimal text, NMEA, log lines, arrays of samples, key=value, units
behind numbers. Each generator gives rows of 12 devices, a reading of each every 2 s with jitter.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from functools import reduce
from operator import xor

import cbor2

from tests.kit.columns import START, Row

__all__ = ["ODD", "STRUCTURELESS", "odd_rows"]

_DEVICES = 12


class _Device:
    """Random walks, and the payload made of them."""

    def __init__(self, rng: random.Random, number: int) -> None:
        self.rng = rng
        self.number = number
        self.walks = [rng.uniform(-50, 300) for _ in range(6)]
        self.turn = rng.randrange(1000)

    def step(self) -> list[float]:
        self.turn += 1
        self.walks = [walk + self.rng.gauss(0, 0.4) for walk in self.walks]
        return self.walks


def odd_rows(kind: str, rounds: int, seed: int = 5) -> list[Row]:
    """Return rows of a kind of `ODD` in order of time."""
    rng = random.Random(f"{kind}{seed}")
    devices = [_Device(rng, n) for n in range(_DEVICES)]
    rows = []
    for turn in range(rounds):
        for device in devices:
            time = START + turn * 2000 + device.number * 150 + int(rng.expovariate(1 / 20))
            rows.append((time, f"odd/{device.number}/{kind}", ODD[kind](device)))
    return sorted(rows, key=lambda row: row[0])


def _csv(device: _Device) -> bytes:
    values = ",".join(f"{walk:.2f}" for walk in device.step())
    return f"{device.number},{values},OK\r\n".encode()


def _xml(device: _Device) -> bytes:
    a, b, *_ = device.step()
    return (
        f'<reading id="{device.number}"><temp unit="C">{a:.1f}</temp><hum>{b:.0f}</hum></reading>'
    ).encode()


def _cbor(device: _Device) -> bytes:
    a, b, c, *_ = device.step()
    return cbor2.dumps({"t": round(a, 2), "h": int(b), "n": device.turn, "on": c > 100})


def _message_pack(device: _Device) -> bytes:
    a, b, *_ = device.step()
    return (
        b"\x83\xa1t\xca" + struct.pack(">f", a) + b"\xa1h\xcd" + struct.pack(">H", int(b) & 0xFFFF)
        + b"\xa1n\xce" + struct.pack(">I", device.turn)
    )  # fmt: skip


def _hexadecimal(device: _Device) -> bytes:
    a, b, *_ = device.step()
    return struct.pack(">hHI", int(a * 10), int(b * 10) & 0xFFFF, device.turn).hex().encode()


def _nmea(device: _Device) -> bytes:
    a, b, c, *_ = device.step()
    clock = f"{device.turn // 3600 % 24:02d}{device.turn // 60 % 60:02d}{device.turn % 60:02d}"
    text = (
        f"GPRMC,{clock}.000,A,{4800 + abs(a) / 60:09.4f},N,{1100 + abs(b) / 60:010.4f},E"
        f",{abs(c) / 10:05.1f},084.4,211126,,,A"
    )
    return f"${text}*{reduce(xor, text.encode()):02X}\r\n".encode()


def _log_line(device: _Device) -> bytes:
    a, *_ = device.step()
    seconds = device.turn % 60
    what = device.rng.choice(["connected", "timeout after retry", "sample stored", "low battery"])
    return (
        f"Nov 21 04:{device.turn // 60 % 60:02d}:{seconds:02d} dev{device.number} app[{811}]: "
        f"{what} rssi=-{int(abs(a)) % 99} dBm"
    ).encode()


def _samples(device: _Device) -> bytes:
    device.step()
    samples = [int(device.walks[0] * 10 + device.rng.gauss(0, 6)) for _ in range(24)]
    return json.dumps({"id": device.number, "v": samples}).encode()


def _key_value(device: _Device) -> bytes:
    a, b, c, *_ = device.step()
    return f"temp={a:.1f};hum={b:.0f};bat={abs(c):.3f};up={device.turn * 2}".encode()


def _units(device: _Device) -> bytes:
    return f"{device.step()[0]:.2f} °C".encode()


def _dotted_binary(device: _Device) -> bytes:
    a, *_ = device.step()
    return b"\x00\xff".join([b"%.1f" % a, b"%d" % device.turn, bytes([device.number])])


def _random_text(device: _Device) -> bytes:
    return bytes(device.rng.choices(b"abcdefghijklmnopqrstuvwxyz /:{}[]\"',.0123456789", k=60))


def _encrypted(device: _Device) -> bytes:
    return device.rng.randbytes(48)


ODD: dict[str, Callable[[_Device], bytes]] = {
    "csv": _csv,
    "xml": _xml,
    "cbor": _cbor,
    "message-pack": _message_pack,
    "hexadecimal": _hexadecimal,
    "nmea": _nmea,
    "log-line": _log_line,
    "samples": _samples,
    "key-value": _key_value,
    "units": _units,
    "dotted-binary": _dotted_binary,
    "random-text": _random_text,
    "encrypted": _encrypted,
}
STRUCTURELESS = frozenset({"random-text", "encrypted"})
