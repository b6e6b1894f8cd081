"""Fan-in: many publishers, no subscriber, QoS 0, 1 and 2, ours and mosquitto side by side.

Ours acknowledges after the journal's commit is on disk; mosquitto keeps nothing. `--amqtt` adds
amqtt, the asyncio broker from PyPI, which acknowledges before it stores.

    tidegate bench fan-in
    tidegate bench fan-in -- --runs 3 --cases 0,1
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks.brokers import RunningBroker, amqtt
from benchmarks.compare import (
    BOTH,
    Figure,
    Row,
    alternate,
    figure_of,
    parser_of,
    raise_descriptor_limit,
    report,
)
from benchmarks.load import LoadSpec, spawn_load

__all__ = ["CASES", "Case", "main"]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    name: str
    connections: int
    window: int
    qos: int
    target: float  # the ratio that DESIGN section 8 asks for; 0 for none
    protocol_version: int = 4


CASES = (
    Case("QoS 1, 50 connections x window 20", 50, 20, 1, 2.0),
    Case("QoS 1, 500 connections x window 1", 500, 1, 1, 1.0),
    Case("QoS 1, MQTT 5, 50 x 20", 50, 20, 1, 2.0, 5),
    Case("QoS 0, 50 connections", 50, 20, 0, 1.0),
    Case("QoS 2, 50 connections x window 20", 50, 20, 2, 1.0),
)


def _measure(
    broker: RunningBroker, case: Case, payload_bytes: int, duration_s: float
) -> dict[str, Figure]:
    load = spawn_load(
        LoadSpec(
            port=broker.port,
            pid=broker.pid,
            connections=case.connections,
            window=case.window,
            qos=case.qos,
            payload_bytes=payload_bytes,
            duration_s=duration_s,
            protocol_version=case.protocol_version,
        )
    )
    cores = load.broker_core_share, load.generator_core_share
    return {"rate": figure_of(load.messages_per_s, *cores)}


def main() -> None:
    """Run the cases and print a table, then the same as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--payload-bytes", type=int, default=100, help="of each message [100]")
    parser.add_argument("--cases", default="", help="indices of the cases, such as 0,1")
    parser.add_argument("--amqtt", action="store_true", help="run amqtt as well")
    options = parser.parse_args()
    chosen = [int(index) for index in options.cases.split(",")] if options.cases else range(99)
    if options.quick:
        options.runs, options.duration_s = 1, 0.2
    cases = [case for index, case in enumerate(CASES) if index in chosen]
    raise_descriptor_limit(max((case.connections for case in cases), default=0))
    rows = []
    for case in cases:
        starts = [*BOTH, amqtt] if options.amqtt and case.protocol_version == 4 else BOTH
        measure = partial(
            _measure,
            case=case,
            payload_bytes=options.payload_bytes,
            duration_s=options.duration_s,
        )
        found = alternate(measure, options.runs, starts)
        rows.append(Row(case.name, "message/s", found["rate"], case.target))
    report(rows, only_json=options.json)


if __name__ == "__main__":
    main()
