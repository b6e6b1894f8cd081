"""Seeded payloads in the shapes of software that no trace at hand has: to judge codecs by.

Each generator gives `(time_ms, topic, payload)` in order of time. The signals are random walks; the
shapes are JSON of smart plugs and LoRaWAN servers, Sparkplug B, Modbus-like frames, line protocol,
CSV, full-precision floats, random key order, waveforms, syslog, odd spellings, OPC UA JSON, XML,
NMEA sentences, nested arrays, base64 and hexadecimal texts, noise, and what `foreign_payloads` has.
"""

from __future__ import annotations

import base64
import json
import math
import random
import string
import struct
import uuid
from collections.abc import Callable, Iterator

from tests.kit.foreign_payloads import FOREIGN
from tests.kit.payload_parts import (
    Message,
    arrivals,
    compact,
    iso,
    protobuf_number,
    protobuf_part,
    walk,
)

__all__ = ["SHAPES", "messages"]


def messages(shape: str, count: int, *, seed: int = 1) -> list[Message]:
    """Return `count` messages of a shape, a key of `SHAPES`."""
    found = SHAPES[shape](random.Random(f"{shape}{seed}"), count)
    return sorted(found, key=lambda message: message[0])[:count]


# ---- JSON ----------------------------------------------------------------------------------------


def _smart_plug(rng: random.Random, count: int) -> Iterator[Message]:
    """Status and, now and then, an event that says much of it again, from the same plug."""
    power = [rng.random() * 100 for _ in range(40)]
    volt, energy, warm = [230.0] * 40, [rng.random() * 1e5 for _ in range(40)], [40.0] * 40
    minutes = [[0.0, 0.0, 0.0] for _ in range(40)]
    for time, d in arrivals(rng, 40, 60_000, count):
        power[d] = walk(rng, power[d], 5, 0)
        volt[d], warm[d] = walk(rng, volt[d], 0.5), walk(rng, warm[d], 0.2)
        energy[d] += power[d] / 60
        minutes[d] = [round(power[d] / 0.06, 3), *minutes[d][:2]]
        name = f"plug1pm-{d * 7919 % 65536:04x}a8b{d % 16:x}"
        counted = {
            "total": round(energy[d], 3),
            "by_minute": minutes[d],
            "minute_ts": time // 60_000 * 60,
        }
        status = {
            "id": 0,
            "output": True,
            "apower": power[d],
            "voltage": volt[d],
            "current": round(power[d] / volt[d], 3),
            "aenergy": counted,
            "temperature": {"tC": warm[d], "tF": round(warm[d] * 1.8 + 32, 1)},
        }
        yield time, f"{name}/status/switch:0", json.dumps(status).encode()
        if rng.random() < 0.3:
            event = {
                "src": name,
                "method": "NotifyStatus",
                "params": {
                    "ts": round(time / 1000, 2),
                    "switch:0": {"id": 0, "apower": power[d], "aenergy": counted},
                },
            }
            yield time + rng.randrange(3, 9), f"{name}/events/rpc", compact(event)


def _lorawan(rng: random.Random, count: int) -> Iterator[Message]:
    """A network server's uplinks: random key order, dropped zeros, 1 to 3 gateways, identifiers."""
    warm, wet, air = [20.0] * 30, [50.0] * 30, [400.0] * 30
    frames = [rng.randrange(5000) for _ in range(30)]
    for time, d in arrivals(rng, 30, 600_000, count, 300):
        frames[d] += 1
        warm[d], wet[d] = walk(rng, warm[d], 0.3), walk(rng, wet[d], 0.6, 0, 100)
        air[d] = walk(rng, air[d], 12, 300, 2000, 0)
        values = {
            "temperature": warm[d],
            "humidity": wet[d],
            "co2": int(air[d]),
            "light": 0 if rng.random() < 0.4 else rng.randrange(900),
            "motion": rng.choice([0, 0, 1]),
        }
        present = [key for key, value in values.items() if value]
        rng.shuffle(present)
        eui = f"{d * 2654435761 % 2**64:016x}"
        data = struct.pack(">hBHB", int(warm[d] * 10), int(wet[d] * 2), int(air[d]), d)
        uplink = {
            "deduplicationId": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            "time": iso(rng, time),
            "deviceInfo": {
                "tenantId": "52f14cd4-c6f1-4fbd-8f87-4025e1d49242",
                "applicationName": "air",
                "deviceName": f"room-{d:03}",
                "devEui": eui,
                "tags": {"floor": str(d % 5)},
            },
            "adr": True,
            "dr": rng.choice([5, 5, 4, 0]),
            "fCnt": frames[d],
            "data": base64.b64encode(data).decode(),
            "object": {key: values[key] for key in present},
            "rxInfo": [
                {
                    "gatewayId": f"0016c001f1{gateway:06x}",
                    "uplinkId": rng.randrange(2**32),
                    "nsTime": iso(rng, time - rng.randrange(300)),
                    "rssi": -rng.randrange(60, 118),
                    "snr": round(rng.uniform(-10, 12), 1),
                    "location": {"latitude": 48.1 + gateway / 100, "longitude": 11.5},
                    "crcStatus": "CRC_OK",
                }
                for gateway in rng.sample(range(4), rng.choice([1, 1, 2, 3]))
            ],
            "txInfo": {"frequency": rng.choice([868100000, 868300000, 868500000])},
        }
        yield time, f"application/ca739e26/device/{eui}/event/up", compact(uplink)


def _random_order(rng: random.Random, count: int) -> Iterator[Message]:
    """Some of eight fields, in any order."""
    state = [
        {key: rng.uniform(0, 100) for key in ("co", "no2", "o3", "t", "h", "p", "lux", "uv")}
        for _ in range(40)
    ]
    for time, d in arrivals(rng, 40, 20_000, count):
        keys = [key for key in state[d] if rng.random() < 0.7]
        rng.shuffle(keys)
        for key in keys:
            state[d][key] = walk(rng, state[d][key], 0.3)
        values = {key: state[d][key] for key in keys}
        yield time, f"any/order/{d}", json.dumps({"id": d, "m": values}).encode()


def _full_floats(rng: random.Random, count: int) -> Iterator[Message]:
    """Doubles as they print, exponents, null now and then, integers beyond 64 bits, escapes."""
    value = [rng.uniform(0, 50) for _ in range(30)]
    for time, d in arrivals(rng, 30, 30_000, count):
        value[d] += rng.gauss(0, 0.1)
        reading = {
            "ts": time / 1000,
            "val": value[d],
            "exp": value[d] * 1e-7,
            "n": None if rng.random() < 0.05 else rng.randrange(10),
            "big": 10**20 + rng.randrange(10**6),
            "tags": ["a", 'b"c\\\u00e9'],
        }
        yield time, f"py/{d}/data", json.dumps(reading).encode()


def _waveform(rng: random.Random, count: int) -> Iterator[Message]:
    """An array of 64 samples."""
    for time, d in arrivals(rng, 10, 30_000, count):
        phase = rng.random() * 6
        samples = [int(1000 * math.sin(phase + n / 5) + rng.gauss(0, 10)) for n in range(64)]
        yield time, f"vibration/{d}/wave", compact({"fs": 3200, "x": samples})


def _odd_spellings(rng: random.Random, count: int) -> Iterator[Message]:
    """JSON that is legal and strange, words, nothing at all."""
    for time, d in arrivals(rng, 10, 30_000, count):
        x = rng.randrange(1000)
        yield (
            time,
            f"odd/{d}/x",
            rng.choice(
                [
                    b'{ "a" : %d.0e+%02d,\n\t"a":-0, "b":[ %d , [ %d,{}] ,[] ] }'
                    % (x % 10, x % 5, x, x % 7),
                    b'{"a":"x\\"%d\\u00e9","c":%d}' % (x, 10**25 + x),
                    b"on" if x & 1 else b"off",
                    b"",
                    b"\xc3\xa9%d" % x,
                    b"[%d,%d]" % (x, x),
                ]
            ),
        )


def _random_json(rng: random.Random, count: int) -> Iterator[Message]:
    """Keys and values that never come again."""

    def word() -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randrange(3, 12)))

    for time, d in arrivals(rng, 20, 5000, count):
        values = {
            word(): rng.choice([rng.random(), word(), rng.randrange(10**6)])
            for _ in range(rng.randrange(2, 9))
        }
        yield time, f"random/{d}/json", json.dumps(values).encode()


# ---- text ----------------------------------------------------------------------------------------


def _line_protocol(rng: random.Random, count: int) -> Iterator[Message]:
    load, memory = [50.0] * 30, [40.0] * 30
    for time, d in arrivals(rng, 30, 15_000, count):
        load[d] = walk(rng, load[d], 3, 0, 100, 2)
        memory[d] = walk(rng, memory[d], 0.3, 0, 100, 4)
        fields = f"user={load[d]},idle={round(100 - load[d], 2)},mem={memory[d]}"
        line = f"cpu,cpu=total,host=host{d} {fields} {time * 10**6 + rng.randrange(10**6)}"
        yield time, f"telegraf/host{d}/cpu", line.encode()


def _csv(rng: random.Random, count: int) -> Iterator[Message]:
    state = [[rng.uniform(0, 50) for _ in range(5)] for _ in range(30)]
    for time, d in arrivals(rng, 30, 30_000, count):
        state[d] = [walk(rng, value, 0.2, n=2) for value in state[d]]
        values = ";".join(f"{value:.2f}" for value in state[d])
        word = "OK" if rng.random() < 0.98 else "ERR"
        yield time, f"loggers/{d}/csv", f"{values};{word};{time // 1000}\r\n".encode()


def _syslog(rng: random.Random, count: int) -> Iterator[Message]:
    words = ["error", "warning", "connected", "timeout", "retry", "sensor", "failed", "ok", "lost"]
    for time, d in arrivals(rng, 10, 7000, count, 800):
        s = time // 1000
        text = " ".join(rng.choices(words, k=rng.randrange(3, 10)))
        head = (
            f"<{rng.choice([13, 14, 6])}>Oct 20 {s // 3600 % 24:02}:{s // 60 % 60:02}:{s % 60:02}"
        )
        line = f"{head} gw{d} {rng.choice(['kernel', 'sshd'])}[{rng.randrange(300, 9999)}]: {text}"
        yield time, f"sys/gw{d}/log", line.encode()


# ---- binary --------------------------------------------------------------------------------------


def _modbus(rng: random.Random, count: int) -> Iterator[Message]:
    """Answers of fixed length: unit, six registers, a counter, CRC-16."""
    registers = [[rng.randrange(3000) for _ in range(6)] for _ in range(25)]
    counters = [rng.randrange(10**6) for _ in range(25)]
    for time, d in arrivals(rng, 25, 10_000, count):
        registers[d] = [max(0, value + rng.randrange(-4, 5)) for value in registers[d]]
        counters[d] += rng.randrange(3)
        frame = bytes((d + 1, 3, 16)) + struct.pack(">6HI", *registers[d], counters[d])
        crc = 0xFFFF
        for byte in frame:
            crc ^= byte
            for _ in range(8):
                crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
        yield time, f"plant/bus{d % 3}/unit{d}/registers", frame + struct.pack("<H", crc)


# ---- other texts ---------------------------------------------------------------------------------


def _opc_ua(rng: random.Random, count: int) -> Iterator[Message]:
    """PubSub JSON with a source timestamp of 100 ns and a value of full precision a variable."""
    value = [rng.uniform(0, 100) for _ in range(20)]
    for number, (time, d) in enumerate(arrivals(rng, 20, 1_000, count)):
        value[d] += rng.gauss(0, 0.3)
        stamp = iso(rng, time)[:-6]
        variable = {
            "Value": value[d],
            "SourceTimestamp": f"{stamp}{rng.randrange(10)}Z",
            "StatusCode": {"Code": 0, "Symbol": "Good"},
        }
        message = {
            "DataSetWriterId": 1000 + d,
            "SequenceNumber": number // 20,
            "MetaDataVersion": {"MajorVersion": 1, "MinorVersion": 2},
            "Payload": {f"ns=2;s=Line{d}.Temperature": variable},
        }
        yield time, f"opcua/json/data/pub/w{d}", compact({"Messages": [message]})


def _xml(rng: random.Random, count: int) -> Iterator[Message]:
    for time, d in arrivals(rng, 30, 5_000, count):
        text = (
            f'<?xml version="1.0"?><reading dev="dev{d}"><temp unit="C">{rng.gauss(20, 1):.2f}'
            f"</temp><hum>{rng.randrange(40, 60)}</hum><state>{rng.choice(('on', 'off'))}</state>"
            "</reading>"
        )
        yield time, f"legacy/{d}/xml", text.encode()


def _nmea(rng: random.Random, count: int) -> Iterator[Message]:
    """GGA sentences with their check byte, which follows from all the rest."""
    place = [(rng.uniform(4700, 4800), rng.uniform(1100, 1200)) for _ in range(15)]
    for time, d in arrivals(rng, 15, 1_000, count):
        place[d] = (place[d][0] + rng.gauss(0, 1e-3), place[d][1] + rng.gauss(0, 1e-3))
        sentence = (
            f"GPGGA,{iso(rng, time)[11:19].replace(':', '')}.00,{place[d][0]:.4f},N,"
            f"{place[d][1]:010.4f},E,1,{rng.randrange(6, 12):02},0.9,{rng.gauss(545, 1):.1f},M,"
            "46.9,M,,"
        )
        check = 0
        for byte in sentence.encode():
            check ^= byte
        yield time, f"boats/{d}/nmea", f"${sentence}*{check:02X}\r\n".encode()


def _nested(rng: random.Random, count: int) -> Iterator[Message]:
    for time, d in arrivals(rng, 8, 2_000, count):
        rows = [[round(rng.gauss(0, 1), 3) for _ in range(6)] for _ in range(5)]
        yield time, f"rig/{d}/matrix", compact({"m": rows, "ok": True})


def _base64(rng: random.Random, count: int) -> Iterator[Message]:
    for time, d in arrivals(rng, 12, 3_000, count):
        data = base64.b64encode(rng.randbytes(90)).decode()
        yield time, f"relay/{d}/raw", compact({"port": d, "data": data})


def _hexadecimal(rng: random.Random, count: int) -> Iterator[Message]:
    for time, d in arrivals(rng, 12, 3_000, count):
        yield time, f"relay/{d}/hex", rng.randbytes(60).hex().encode()


# ---- protobuf, noise -----------------------------------------------------------------------------


def _sparkplug(rng: random.Random, count: int) -> Iterator[Message]:
    """DDATA by exception: some of 12 metrics, by alias, each with its own time."""
    values = [[rng.uniform(0, 100) for _ in range(12)] for _ in range(20)]
    totals, seqs = [rng.randrange(10**5) for _ in range(20)], [0] * 20
    for time, d in arrivals(rng, 20, 2000, count):
        body = b""
        for k in sorted(rng.sample(range(12), rng.choice([1, 3, 5, 8, 12]))):
            value = values[d][k] = walk(rng, values[d][k], 0.5)
            head = protobuf_number(2, k + 1) + protobuf_number(3, time - rng.randrange(50))
            if k < 5:
                metric = head + protobuf_number(4, 9) + b"\x65" + struct.pack("<f", value)
            elif k < 9:
                metric = head + protobuf_number(4, 10) + b"\x69" + struct.pack("<d", value)
            elif k < 11:
                totals[d] += 1
                metric = head + protobuf_number(4, 7) + protobuf_number(10, totals[d])
            else:
                metric = head + protobuf_number(4, 11) + protobuf_number(14, rng.randrange(2))
            body += protobuf_part(2, metric)
        seqs[d] = (seqs[d] + 1) % 256
        payload = protobuf_number(1, time - rng.randrange(10)) + body + protobuf_number(3, seqs[d])
        yield time, f"spBv1.0/Plant/DDATA/edge{d % 4}/press{d}", payload


def _noise(rng: random.Random, count: int) -> Iterator[Message]:
    for time, d in arrivals(rng, 20, 5000, count):
        yield time, f"noise/{d}/x", rng.randbytes(rng.randrange(20, 180))


SHAPES: dict[str, Callable[[random.Random, int], Iterator[Message]]] = {
    "smart-plug": _smart_plug,
    "lorawan": _lorawan,
    "random-order": _random_order,
    "full-floats": _full_floats,
    "waveform": _waveform,
    "odd-spellings": _odd_spellings,
    "random-json": _random_json,
    "line-protocol": _line_protocol,
    "csv": _csv,
    "syslog": _syslog,
    "modbus": _modbus,
    "sparkplug": _sparkplug,
    "opc-ua": _opc_ua,
    "xml": _xml,
    "nmea": _nmea,
    "nested": _nested,
    "base64": _base64,
    "hexadecimal": _hexadecimal,
    "noise": _noise,
    **FOREIGN,
}
