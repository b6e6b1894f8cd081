"""Seeded payloads of yet other software, large ones and many-fielded ones above all.

Made after the codec was, to judge it by what it has never seen: births and data of Sparkplug nodes
with dozens of metrics, LoRaWAN uplinks, whole device states, discovery messages, SenML packs, cell
voltages, waveforms, register blocks, MessagePack and CBOR maps, printed JSON, topics that never
come again. Generators are those of `payload_shapes` in form.
"""

from __future__ import annotations

import base64
import json
import math
import random
import struct
import uuid
from collections.abc import Callable, Iterator

import cbor2

from tests.kit.payload_parts import (
    Message,
    arrivals,
    compact,
    iso,
    protobuf_number,
    protobuf_part,
    walk,
)

__all__ = ["FOREIGN"]


# ---- Sparkplug B ---------------------------------------------------------------------------------


def _sparkplug_node(rng: random.Random, count: int) -> Iterator[Message]:
    """NDATA with names of 10 to 40 metrics of 60, and a whole NBIRTH now and then."""
    names = [f"Line {k // 10}/Cell {k % 10}/{w}" for k in range(20) for w in ("Temp", "Load", "On")]
    values = [[rng.uniform(0, 90) for _ in names] for _ in range(6)]
    seqs = [0] * 6
    for time, d in arrivals(rng, 6, 1_000, count):
        birth = seqs[d] == 0 or rng.random() < 0.005
        picked = range(60) if birth else sorted(rng.sample(range(60), rng.choice([10, 20, 40])))
        body = b""
        for k in picked:
            values[d][k] = walk(rng, values[d][k], 0.4)
            metric = protobuf_part(1, names[k].encode()) + protobuf_number(3, time)
            if k % 3 == 2:
                metric += protobuf_number(4, 11) + protobuf_number(14, int(values[d][k]) & 1)
            else:
                metric += protobuf_number(4, 10) + b"\x69" + struct.pack("<d", values[d][k])
            body += protobuf_part(2, metric)
        seqs[d] = (seqs[d] + 1) % 256
        payload = protobuf_number(1, time) + body + protobuf_number(3, seqs[d])
        kind = "NBIRTH" if birth else "NDATA"
        yield time, f"spBv1.0/Plant/{kind}/node{d}", payload


def _protobuf_fixed(rng: random.Random, count: int) -> Iterator[Message]:
    """A flat message: fixed fields, a counter, a packed array of 16 floats."""
    values = [[rng.uniform(0, 90) for _ in range(20)] for _ in range(15)]
    for n, (time, d) in enumerate(arrivals(rng, 15, 2_000, count)):
        values[d] = [walk(rng, value, 0.3, n=2) for value in values[d]]
        body = b"\x09" + struct.pack("<Q", time) + protobuf_number(2, n)
        for k in range(4):
            body += bytes((3 + k << 3 | 5,)) + struct.pack("<f", values[d][k])
        yield time, f"gw/{d}/pb", body + protobuf_part(9, struct.pack("<16f", *values[d][4:]))


# ---- LoRaWAN -------------------------------------------------------------------------------------


def _things_uplink(rng: random.Random, count: int) -> Iterator[Message]:
    """The Things Stack v3: decoded and raw payload, one or two gateways, correlation ids."""
    warm, soil, frames = [20.0] * 25, [30.0] * 25, [rng.randrange(9000) for _ in range(25)]
    for time, d in arrivals(rng, 25, 300_000, count, 300):
        warm[d], soil[d] = walk(rng, warm[d], 0.2), walk(rng, soil[d], 0.3, n=2)
        frames[d] += 1
        raw = struct.pack(">hHH", int(warm[d] * 10), int(soil[d] * 100), 3600 - frames[d] % 90)
        receivers = [
            {
                "gateway_ids": {"gateway_id": f"barn-{g}", "eui": f"A84041FFFF1E{g:04X}"},
                "time": iso(rng, time - rng.randrange(90)),
                "timestamp": rng.randrange(2**32),
                "rssi": -rng.randrange(60, 120),
                "channel_rssi": -rng.randrange(60, 120),
                "snr": round(rng.uniform(-9, 11), 1),
                "uplink_token": base64.b64encode(rng.randbytes(18)).decode(),
                "received_at": iso(rng, time),
            }
            for g in rng.sample(range(3), rng.choice([1, 1, 1, 2]))
        ]
        uplink = {
            "end_device_ids": {
                "device_id": f"soil-{d}",
                "application_ids": {"application_id": "farm"},
                "dev_eui": f"70B3D57ED00{d:05X}",
                "dev_addr": f"260B{d:04X}",
            },
            "correlation_ids": [f"gs:uplink:{uuid.UUID(int=rng.getrandbits(128), version=4)}"],
            "received_at": iso(rng, time),
            "uplink_message": {
                "f_port": 2,
                "f_cnt": frames[d],
                "frm_payload": base64.b64encode(raw).decode(),
                "decoded_payload": {"BatV": round(3.6 - frames[d] % 90 / 1000, 3),
                                    "TempC": warm[d], "Soil": soil[d], "Alarm": False},
                "rx_metadata": receivers,
                "settings": {
                    "data_rate": {"lora": {"bandwidth": 125000,
                                           "spreading_factor": rng.choice([7, 7, 8, 10])}},
                    "frequency": rng.choice(["868100000", "868300000", "868500000"]),
                },
                "consumed_airtime": f"0.0{rng.randrange(40000, 99999)}s",
            },
        }  # fmt: skip
        yield time, f"v3/farm@ttn/devices/soil-{d}/up", compact(uplink)


# ---- JSON of whole devices -----------------------------------------------------------------------


def _energy_meter(rng: random.Random, count: int) -> Iterator[Message]:
    """A three-phase meter's notification: some forty numbers that hang together."""
    volt, amp = [[230.0] * 3 for _ in range(12)], [[4.0] * 3 for _ in range(12)]
    total = [[rng.uniform(0, 9e6) for _ in range(6)] for _ in range(12)]
    for time, d in arrivals(rng, 12, 10_000, count):
        phases = {}
        for k, name in enumerate("abc"):
            volt[d][k] = walk(rng, volt[d][k], 0.3)
            amp[d][k] = walk(rng, amp[d][k], 0.2, 0, 40, 3)
            factor = round(rng.uniform(0.9, 1), 2)
            total[d][k] += amp[d][k] * volt[d][k] / 360
            phases |= {
                f"{name}_current": amp[d][k],
                f"{name}_voltage": volt[d][k],
                f"{name}_act_power": round(amp[d][k] * volt[d][k] * factor, 1),
                f"{name}_aprt_power": round(amp[d][k] * volt[d][k], 1),
                f"{name}_pf": factor,
                f"{name}_freq": round(50 + rng.gauss(0, 0.02), 1),
            }
        energy = {f"{name}_total_act_energy": round(total[d][k], 2) for k, name in enumerate("abc")}
        params = {
            "ts": round(time / 1000, 2),
            "em:0": {"id": 0, **phases, "n_current": None, "user_calibrated_phase": []},
            "emdata:0": {"id": 0, **energy, "total_act": round(sum(total[d][:3]), 2)},
            "wifi": {"sta_ip": f"10.0.4.{d}", "rssi": -rng.randrange(50, 70)},
            "sys": {"uptime": time // 1000 % 10**6, "ram_free": rng.randrange(90, 120) * 1024},
        }
        event = {"src": f"pro3em-{d:012x}", "dst": "m", "method": "NotifyStatus", "params": params}
        yield time, f"pro3em-{d:012x}/events/rpc", compact(event)


def _discovery(rng: random.Random, count: int) -> Iterator[Message]:
    """Home Assistant: a configuration an entity, all of them again after each start."""
    for time, d in arrivals(rng, 60, 600_000, count):
        node, kind = (
            f"0x{d // 4 * 99991:016x}",
            ("temperature", "humidity", "battery", "lqi")[d % 4],
        )
        config = {
            "unique_id": f"{node}_{kind}",
            "name": kind.capitalize(),
            "state_topic": f"z2m/{node}",
            "value_template": "{{ value_json." + kind + " }}",
            "availability": [{"topic": "z2m/bridge/state"}, {"topic": f"z2m/{node}/availability"}],
            "device": {
                "identifiers": [f"z2m_{node}"],
                "model": ("TS0201", "WSDCGQ11LM")[d % 2],
                "sw_version": f"1.{d % 7}.{rng.choice([0, 0, 0, 1])}",
            },
            "unit_of_measurement": ("\u00b0C", "%", "%", "lqi")[d % 4],
        }
        yield time, f"homeassistant/sensor/{node}/{kind}/config", compact(config)


def _gateway_state(rng: random.Random, count: int) -> Iterator[Message]:
    """A heat pump's whole state, printed with indents: words, flags, nulls, escapes, exponents."""
    warm = [[rng.uniform(10, 50) for _ in range(8)] for _ in range(10)]
    for time, d in arrivals(rng, 10, 15_000, count):
        warm[d] = [walk(rng, value, 0.1, n=2) for value in warm[d]]
        state = {
            "name": f"K\u00fche {d}",
            "when": iso(rng, time),
            "mode": rng.choice(["heat"] * 9 + ["defrost"]),
            "serial": 10**19 + d * 7919,
            "temperatures": {f"t{k}": value for k, value in enumerate(warm[d])},
            "flags": {f"f{k}": rng.random() < 0.98 for k in range(12)},
            "cop": warm[d][0] * 1e-7,
            "error": None if rng.random() < 0.97 else f"E{rng.randrange(40)}",
            "path": "C:\\logs\\hp.log",
        }
        yield time, f"heat/{d}/state", json.dumps(state, indent=2).encode()


def _nested_site(rng: random.Random, count: int) -> Iterator[Message]:
    """Five lines of ten sensors each with value and flag: some 2 KB."""
    values = [[rng.uniform(10, 40) for _ in range(50)] for _ in range(6)]
    for time, d in arrivals(rng, 6, 10_000, count):
        values[d] = [walk(rng, value, 0.1, n=2) for value in values[d]]
        lines = [
            {
                "name": f"L{k}",
                "sensors": [
                    {"id": f"{k}-{m}", "value": values[d][10 * k + m], "ok": rng.random() < 0.98}
                    for m in range(10)
                ],
            }
            for k in range(5)
        ]
        yield (
            time,
            f"site/{d}",
            json.dumps({"site": {"id": d, "ts": time, "lines": lines}}).encode(),
        )


def _battery_cells(rng: random.Random, count: int) -> Iterator[Message]:
    """Sixteen cells in millivolts, temperatures, a state of charge, words and flags between."""
    cells = [[rng.randrange(3250, 3350) for _ in range(16)] for _ in range(12)]
    for time, d in arrivals(rng, 12, 5_000, count):
        cells[d] = [cell + rng.choice([-1, 0, 0, 0, 1]) for cell in cells[d]]
        pack = {
            "cells": cells[d],
            "temps": [round(20 + rng.gauss(0, 0.2), 1) for _ in range(4)],
            "soc": 80 - time // 600_000 % 60,
            "i": round(rng.gauss(-10, 1), 2),
            "bal": [rng.random() < 0.05 for _ in range(16)],
            "mixed": [1, "a", None, round(rng.random(), 3), {"x": rng.randrange(3)}, [], True],
        }
        yield time, f"bms/{d}/pack", compact(pack)


def _senml(rng: random.Random, count: int) -> Iterator[Message]:
    """RFC 8428: a base record, then records with offsets."""
    warm = [[rng.uniform(0, 40) for _ in range(6)] for _ in range(20)]
    for time, d in arrivals(rng, 20, 30_000, count):
        warm[d] = [walk(rng, value, 0.2) for value in warm[d]]
        head = {"bn": f"urn:dev:mac:0024befffe{d:06x}:", "bt": time / 1000, "bu": "Cel"}
        pack = [{**head, "n": "t0", "v": warm[d][0]}]
        pack += [{"n": f"t{k}", "t": -k, "v": warm[d][k]} for k in range(1, 6)]  # type: ignore[dict-item]  # records differ
        pack.append({"n": "door", "vb": rng.random() < 0.5})  # type: ignore[dict-item]  # and so here
        yield time, f"senml/{d}", compact(pack)


def _victron(rng: random.Random, count: int) -> Iterator[Message]:
    """One value a topic, each in a small object."""
    kinds = ("Dc/Battery/Voltage", "Dc/Battery/Power", "Ac/Grid/L1/Power", "Dc/Pv/Power")
    values = [rng.uniform(0, 500) for _ in range(80)]
    for time, d in arrivals(rng, 80, 1_000, count):
        values[d] = walk(rng, values[d], 1.5, n=(2, 0, 1, 3)[d % 4])
        value = int(values[d]) if d % 4 == 1 else values[d]
        yield time, f"N/c0619ab{d // 4:05x}/system/0/{kinds[d % 4]}", compact({"value": value})


def _fresh_topics(rng: random.Random, count: int) -> Iterator[Message]:
    """An event each under a topic of its own, which never comes again."""
    for time, _ in arrivals(rng, 10, 1_000, count):
        job = uuid.UUID(int=rng.getrandbits(128), version=4)
        event = {"job": str(job), "state": rng.choice(["new", "done"]), "ms": rng.randrange(9000)}
        yield time, f"jobs/{job}/event", compact(event)


# ---- series --------------------------------------------------------------------------------------


def _vibration(rng: random.Random, count: int) -> Iterator[Message]:
    """An array of 128 samples of three decimals, and what was made of them."""
    for time, d in arrivals(rng, 6, 10_000, count):
        phase = rng.random() * 6
        samples = [round(math.sin(phase + n / 4) + rng.gauss(0, 0.02), 3) for n in range(128)]
        rms = round(math.sqrt(sum(x * x for x in samples) / 128), 4)
        yield time, f"motor/{d}/axis", compact({"ts": time, "rms": rms, "y": samples})


def _wave_bytes(rng: random.Random, count: int) -> Iterator[Message]:
    """The same as 200 bytes: a head, and 16-bit samples."""
    for n, (time, d) in enumerate(arrivals(rng, 6, 10_000, count)):
        phase = rng.random() * 6
        samples = [int(9000 * math.sin(phase + k / 4) + rng.gauss(0, 90)) for k in range(96)]
        yield time, f"motor/{d}/raw", struct.pack("<IHH96h", n, d, 3200, *samples)


def _registers(rng: random.Random, count: int) -> Iterator[Message]:
    """A block of 60 registers, most of which stand still."""
    blocks = [[rng.randrange(65536) for _ in range(60)] for _ in range(10)]
    for time, d in arrivals(rng, 10, 2_000, count):
        for k in range(0, 60, 4):
            blocks[d][k] = (blocks[d][k] + rng.randrange(-3, 4)) % 65536
        yield time, f"plc/{d}/block", bytes((d, 3, 120)) + struct.pack(">60H", *blocks[d])


def _many_lines(rng: random.Random, count: int) -> Iterator[Message]:
    """Line protocol, eight lines a message."""
    load = [[rng.uniform(0, 100) for _ in range(8)] for _ in range(12)]
    for time, d in arrivals(rng, 12, 10_000, count):
        load[d] = [walk(rng, value, 2, 0, 100, 2) for value in load[d]]
        lines = [
            f"cpu,host=h{d},cpu=cpu{k} usage={value},idle={round(100 - value, 2)} {time}000000"
            for k, value in enumerate(load[d])
        ]
        yield time, f"telegraf/h{d}", "\n".join(lines).encode()


# ---- maps in binary ------------------------------------------------------------------------------


def _cbor_map(rng: random.Random, count: int) -> Iterator[Message]:
    values = [[rng.uniform(0, 50) for _ in range(5)] for _ in range(20)]
    for n, (time, d) in enumerate(arrivals(rng, 20, 10_000, count)):
        values[d] = [walk(rng, value, 0.2) for value in values[d]]
        item = {
            "t": time,
            "v": values[d][0],
            "n": n,
            "id": f"s{d}",
            "a": [int(v) for v in values[d]],
        }
        yield time, f"cbor/{d}", cbor2.dumps(item)


def _message_pack(rng: random.Random, count: int) -> Iterator[Message]:
    value = [rng.uniform(0, 50) for _ in range(20)]
    for n, (time, d) in enumerate(arrivals(rng, 20, 10_000, count)):
        value[d] = walk(rng, value[d], 0.2, n=2)
        head = b"\x83\xa1t\xcf" + struct.pack(">Q", time) + b"\xa4temp\xcb"
        yield (
            time,
            f"pack/{d}",
            head + struct.pack(">d", value[d]) + b"\xa3cnt\xcd" + struct.pack(">H", n & 0xFFFF),
        )


FOREIGN: dict[str, Callable[[random.Random, int], Iterator[Message]]] = {
    "sparkplug-node": _sparkplug_node,
    "protobuf-fixed": _protobuf_fixed,
    "things-uplink": _things_uplink,
    "energy-meter": _energy_meter,
    "discovery": _discovery,
    "gateway-state": _gateway_state,
    "nested-site": _nested_site,
    "battery-cells": _battery_cells,
    "senml": _senml,
    "victron": _victron,
    "fresh-topics": _fresh_topics,
    "vibration": _vibration,
    "wave-bytes": _wave_bytes,
    "registers": _registers,
    "many-lines": _many_lines,
    "cbor-map": _cbor_map,
    "message-pack": _message_pack,
}
