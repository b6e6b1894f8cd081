"""Ours and mosquitto side by side: runs that alternate, medians, ratios, and what was full.

Runs of the brokers alternate, so that whatever else the machine does hits both. A rate on a busy
machine says little; the ratio says more, and the broker's processor time an operation, which other
load hardly changes, says most: both are in the table.

Where one process is at 0.9 of a core or more it is what binds: `broker` or `generator`. `cores`
is when both together fill two cores, `waits` when nobody is full: a disk, or the machine's other
work.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from benchmarks.brokers import RunningBroker, mosquitto, ours

__all__ = [
    "BOTH",
    "Figure",
    "Row",
    "Start",
    "alternate",
    "figure_of",
    "parser_of",
    "raise_descriptor_limit",
    "report",
    "routing_starts",
]

Start: TypeAlias = Callable[[Path], AbstractContextManager[RunningBroker]]
BOTH: tuple[Start, ...] = (ours, mosquitto)
_FULL = 0.9  # of a core


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of one broker, and what it took."""

    value: float
    broker_core_share: float = 0.0
    generator_core_share: float = 0.0
    cpu_us: float = 0.0  # the broker's processor time for one operation

    @property
    def binds(self) -> str:
        """What was full: broker, generator, cores (both together) or waits (nothing)."""
        if self.broker_core_share >= _FULL:
            return "broker"
        if self.generator_core_share >= _FULL:
            return "generator"
        both = self.broker_core_share + self.generator_core_share
        return "cores" if both >= 2 * _FULL else "waits"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians by broker."""

    case: str
    unit: str
    figures: dict[str, Figure]
    target: float = 0.0  # the ratio wanted; 0 for none
    lower_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How many times better than mosquitto we are."""
        mine, theirs = self.figures["tidegate"].value, self.figures["mosquitto"].value
        if self.lower_is_better:
            mine, theirs = theirs, mine
        return round(mine / theirs, 2) if theirs else 0.0

    def as_json(self) -> dict[str, object]:
        """Return the row as JSON has it."""
        row: dict[str, object] = {
            "case": self.case,
            "unit": self.unit,
            "ratio": self.ratio,
            "target_ratio": self.target,
        }
        for name, figure in self.figures.items():
            row[name] = round(figure.value, 3)
            row[f"{name}_cpu_us"] = round(figure.cpu_us, 2)
            row[f"{name}_broker_cores"] = round(figure.broker_core_share, 2)
            row[f"{name}_generator_cores"] = round(figure.generator_core_share, 2)
            row[f"{name}_binds"] = figure.binds
        return row


def figure_of(per_s: float, broker_core_share: float, generator_core_share: float) -> Figure:
    """Return the figure of a rate."""
    cpu_us = 1e6 * broker_core_share / per_s if per_s else 0.0
    return Figure(per_s, broker_core_share, generator_core_share, cpu_us)


def alternate(
    measure: Callable[[RunningBroker], dict[str, Figure]],
    runs: int,
    starts: Sequence[Start] = BOTH,
) -> dict[str, dict[str, Figure]]:
    """Measure each broker `runs` times, in turn, each time a fresh one.

    Args:
        measure: Returns what it found, by name.
        runs: How often.
        starts: The brokers.

    Returns:
        The medians: name of what was found -> broker -> figure.
    """
    found: dict[str, dict[str, list[Figure]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for index in range(runs):
            # A folder of its own each run: a full journal would refuse.
            for place, start in enumerate(starts):
                with start(Path(folder) / f"{place}-{index}") as broker:
                    for name, figure in measure(broker).items():
                        found.setdefault(name, {}).setdefault(broker.name, []).append(figure)
    return {
        name: {broker: _median(figures) for broker, figures in by_broker.items()}
        for name, by_broker in found.items()
    }


def _median(figures: list[Figure]) -> Figure:
    return Figure(
        statistics.median(each.value for each in figures),
        statistics.median(each.broker_core_share for each in figures),
        statistics.median(each.generator_core_share for each in figures),
        statistics.median(each.cpu_us for each in figures),
    )


def routing_starts(options: argparse.Namespace) -> Sequence[Start]:
    """Return the brokers of a comparison of routing: ours captures only if `--captured` says so."""
    return (partial(ours, captured=options.captured), mosquitto)


def parser_of(
    text: str | None, *, runs: int = 5, duration_s: float = 3.0, routing: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the flags that all comparisons have.

    Args:
        text: The benchmark's docstring: what `--help` says.
        runs: The usual number of runs of each broker.
        duration_s: How long one usually takes.
        routing: Add `--captured`, for `routing_starts`.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=runs, help=f"of each broker [{runs}]")
    parser.add_argument(
        "--duration-s", type=float, default=duration_s, help=f"of one measurement [{duration_s:g}]"
    )
    parser.add_argument("--quick", action="store_true", help="small and short: does it run at all")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    if routing:
        parser.add_argument(
            "--captured",
            action="store_true",
            help="ours also has each message in its journal on disk before PUBACK, as a gateway",
        )
    return parser


def report(rows: Sequence[Row], *, only_json: bool) -> None:
    """Print a table, then the same as JSON."""
    if not only_json:
        print(
            f"{'case':42} {'unit':>10} {'tidegate':>10} {'mosquitto':>10} {'ratio':>6} "
            f"{'target':>6} {'CPU us':>15} {'binds':>19}"
        )
        for row in rows:
            mine, theirs = row.figures["tidegate"], row.figures["mosquitto"]
            cpu = f"{mine.cpu_us:.1f} / {theirs.cpu_us:.1f}" if mine.cpu_us else ""
            binds = f"{mine.binds} / {theirs.binds}" if mine.cpu_us else ""
            print(
                f"{row.case:42} {row.unit:>10} {_short(mine.value):>10} {_short(theirs.value):>10} "
                f"{row.ratio:>6} {row.target or '':>6} {cpu:>15} {binds:>19}"
            )
            for name, figure in row.figures.items():
                if name not in ("tidegate", "mosquitto"):
                    print(f"  {name:40} {row.unit:>10} {_short(figure.value):>10}")
    print(json.dumps([row.as_json() for row in rows]))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def raise_descriptor_limit(wanted: int) -> None:
    """Let this process, and the brokers it starts, have so many descriptors and some more.

    Raises:
        OSError: the system does not let it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise OSError(f"{wanted} descriptors are needed, the limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
