"""Fan-in: many publishers, no subscriber, ours and mosquitto side by side.

Ours acknowledges after the journal's commit is on disk; mosquitto keeps nothing. Runs of the two
alternate, so that whatever else the machine does hits both; the table gives medians and ratios.
`--amqtt` adds amqtt, the asyncio broker from PyPI, which acknowledges before it stores.

    python -m benchmarks.fan_in --runs 5 --duration-s 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.brokers import RunningBroker, amqtt, mosquitto, ours
from benchmarks.load import LoadReport, LoadSpec, spawn_load

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
    Case("QoS 1, MQTT 5, 50 x 20", 50, 20, 1, 0.0, 5),
    Case("QoS 0, 50 connections", 50, 20, 0, 0.0),
    Case("QoS 2, 50 connections x window 20", 50, 20, 2, 0.0),
)


def _run(case: Case, broker: RunningBroker, payload_bytes: int, duration_s: float) -> LoadReport:
    return spawn_load(
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


def _median(reports: list[LoadReport], field: str) -> float:
    return float(statistics.median(getattr(report, field) for report in reports))


def compare(
    case: Case, runs: int, payload_bytes: int, duration_s: float, *, with_amqtt: bool = False
) -> dict[str, object]:
    """Return the medians of one case for each broker, and our ratio to mosquitto."""
    brokers = [ours, mosquitto]
    if with_amqtt and case.protocol_version == 4:
        brokers.append(amqtt)
    reports: dict[str, list[LoadReport]] = {}
    with tempfile.TemporaryDirectory(prefix="fan-in-") as folder:
        for index in range(runs):
            # A journal of its own each run: a full one would refuse.
            for start in brokers:
                with start(Path(folder) / f"{start.__name__}-{index}") as broker:
                    report = _run(case, broker, payload_bytes, duration_s)
                    reports.setdefault(broker.name, []).append(report)
    rates = {name: _median(each, "messages_per_s") for name, each in reports.items()}
    return {
        "case": case.name,
        "target_ratio": case.target,
        "ratio": round(rates["tidegate"] / rates["mosquitto"], 2),
        **{f"{name}_messages_per_s": round(rate) for name, rate in rates.items()},
        **{
            f"{name}_broker_cores": round(_median(each, "broker_core_share"), 2)
            for name, each in reports.items()
        },
        **{
            f"{name}_generator_cores": round(_median(each, "generator_core_share"), 2)
            for name, each in reports.items()
        },
    }


def _print_table(rows: list[dict[str, object]]) -> None:
    print(
        f"{'case':36} {'tidegate/s':>11} {'cores':>6} {'mosquitto/s':>12} {'cores':>6} "
        f"{'ratio':>6} {'target':>7}"
    )
    for row in rows:
        print(
            f"{row['case']!s:36} {row['tidegate_messages_per_s']:>11} "
            f"{row['tidegate_broker_cores']:>6} {row['mosquitto_messages_per_s']:>12} "
            f"{row['mosquitto_broker_cores']:>6} {row['ratio']:>6} {row['target_ratio'] or '':>7}"
        )
        if "amqtt_messages_per_s" in row:
            print(
                f"{'  amqtt':36} {row['amqtt_messages_per_s']:>11} {row['amqtt_broker_cores']:>6}"
            )


def main() -> None:
    """Run the cases and print a table, then the same as JSON."""
    parser = argparse.ArgumentParser(description="fan-in against mosquitto")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=3.0)
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--cases", default="", help="indices of the cases, such as 0,1")
    parser.add_argument("--amqtt", action="store_true", help="run amqtt as well")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    chosen = [int(index) for index in options.cases.split(",")] if options.cases else range(99)
    cases = [case for index, case in enumerate(CASES) if index in chosen]
    rows = [
        compare(
            case,
            options.runs,
            options.payload_bytes,
            options.duration_s,
            with_amqtt=options.amqtt,
        )
        for case in cases
    ]
    if not options.json:
        _print_table(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
