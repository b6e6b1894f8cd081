"""One to one: 500 publishers, 500 subscribers, QoS 1; the rate, and latencies at half of it.

Each publisher has a window of one message, which its own subscriber must get before the next one
goes. Latencies are then taken with both brokers under the same offered load: half of what the
slower one can do, each message timed from when it was due, so that a broker that falls behind
shows it. Topics are not captured.

    tidegate bench pairs
"""

from __future__ import annotations

from functools import partial

from benchmarks.brokers import RunningBroker
from benchmarks.compare import (
    Figure,
    Row,
    alternate,
    figure_of,
    parser_of,
    raise_descriptor_limit,
    routing_starts,
)
from benchmarks.compare import report as print_report
from benchmarks.flow import FlowReport, FlowSpec, spawn_flow

__all__ = ["main"]


def _run(broker: RunningBroker, pairs: int, duration_s: float, rate_s: float = 0.0) -> FlowReport:
    return spawn_flow(
        FlowSpec(
            port=broker.port,
            pid=broker.pid,
            publishers=pairs,
            subscribers=pairs,
            filters=("bench/{i:05d}/#",),
            qos=1,
            window=1,
            rate_s=rate_s,
            duration_s=duration_s,
        )
    )


def _rate(broker: RunningBroker, pairs: int, duration_s: float) -> dict[str, Figure]:
    report = _run(broker, pairs, duration_s)
    cores = report.broker_core_share, report.generator_core_share
    return {"rate": figure_of(report.deliveries_per_s, *cores)}


def _latency(
    broker: RunningBroker, pairs: int, duration_s: float, rate_s: float
) -> dict[str, Figure]:
    report = _run(broker, pairs, duration_s, rate_s)
    cores = report.broker_core_share, report.generator_core_share
    cpu_us = 1e6 * report.broker_core_share / max(1.0, report.deliveries_per_s)
    return {
        name: Figure(value, *cores, cpu_us)
        for name, value in (
            ("p50", report.latency_p50_ms),
            ("p99", report.latency_p99_ms),
            ("p99.9", report.latency_p999_ms),
        )
    }


def main() -> None:
    """Run both parts and print a table, then the same as JSON."""
    parser = parser_of(__doc__, routing=True)
    parser.add_argument("--pairs", type=int, default=500, help="publishers and subscribers [500]")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.runs, options.duration_s = 5, 1, 0.2
    raise_descriptor_limit(2 * options.pairs)
    measure = partial(_rate, pairs=options.pairs, duration_s=options.duration_s)
    rates = alternate(measure, options.runs, routing_starts(options))["rate"]
    rows = [Row(f"{options.pairs} pairs, QoS 1, window 1", "message/s", rates, 1.0)]
    half_s = min(figure.value for figure in rates.values()) / 2
    delay = partial(_latency, pairs=options.pairs, duration_s=options.duration_s, rate_s=half_s)
    rows += [
        Row(f"latency at {half_s:,.0f}/s, {name}", "ms", figures, 0.0, lower_is_better=True)
        for name, figures in alternate(delay, options.runs, routing_starts(options)).items()
    ]
    print_report(rows, only_json=options.json)


if __name__ == "__main__":
    main()
