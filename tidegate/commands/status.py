"""How a running gateway or cloud node is: link, backlog, lag, ledger.

    tidegate status                                the cloud node of this machine
    tidegate status --url http://gw-3:8081         a gateway
    tidegate status --partitions                   who works on which partition, and how far
    tidegate status --json | jq .uplink

The first lines say how it is; below them is every figure it keeps. Exit code 1 when nothing
answers, or when it says it is not ready.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cloud.query_time import iso
from runtime.clock import SystemClock
from tidegate.node_api import ask_node, ask_service
from tidegate.status_summary import summary

__all__ = ["add_arguments", "run"]

DEFAULT_URL = "http://127.0.0.1:8080"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--url", default=DEFAULT_URL, help=f"HTTP address of the service [{DEFAULT_URL}]"
    )
    parser.add_argument(
        "--partitions",
        action="store_true",
        help="of a cloud node: each partition's end, and by sink its node, token and lag",
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the state; 0 when the service is ready."""
    base = options.url.rstrip("/")
    if options.partitions:
        found = ask_node(base, "partitions")["partitions"]
        print(json.dumps(found, indent=2) if options.json else "\n".join(_partition_lines(found)))
        return 0
    ready, reasons = _ready(base)
    status = ask_service(base, "status")
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        print(f"{base}: {'ready' if ready else 'NOT READY: ' + '; '.join(reasons)}")
        head = summary(status, SystemClock().wall_us())
        print("\n".join([*head, *([""] if head else []), *_lines(status)]))
    return 0 if ready else 1


def _ready(base: str) -> tuple[bool, list[str]]:
    body = ask_service(base, "readyz", also=503)
    return bool(body.get("ok")), [str(reason) for reason in body.get("reasons", ())]


def _partition_lines(partitions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the partitions as text: first what each node has, then a line for each of them.

    A node knows the lag of what it works on itself: "-" stands for what another does.
    """
    shares: dict[str, dict[str, int]] = {}
    for one in partitions:
        for sink, node in one["owners"].items():
            of_node = shares.setdefault(node, {})
            of_node[sink] = of_node.get(sink, 0) + 1
    for node, of_node in sorted(shares.items()):
        yield f"{node}: " + ", ".join(f"{sink} {count}" for sink, count in sorted(of_node.items()))
    for one in partitions:
        parts = [f"{one['partition']:>2}  end {one['last_position']}"]
        for sink in sorted({*one["cursors"], *one["owners"]}):
            words = [
                f"{sink}:",
                one["owners"].get(sink, ""),
                f"lag {one['lag_entries'].get(sink, '-')}",
            ]
            if sink in one["tokens"]:
                words.append(f"token {one['tokens'][sink]}")
            parts.append(" ".join(filter(None, words)))
        yield "  ".join(parts)
    if not partitions:
        yield "no partition was ever written"


def _lines(status: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the status as indented text; empty parts are left out."""
    width = max((len(name) for name in status), default=0)
    for name, value in status.items():
        if isinstance(value, Mapping):
            if value:
                yield f"{indent}{name}"
                yield from _lines(value, indent + "  ")
        elif value not in (None, "", []):
            yield f"{indent}{name:{width}}  {_shown(name, value)}"


def _time(time_us: int) -> str:
    return iso(time_us) if time_us else "-"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        if name.endswith("_bytes") or name.startswith("bytes"):
            return f"{value:,} B"
        return _time(value) if name.endswith("_us") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
