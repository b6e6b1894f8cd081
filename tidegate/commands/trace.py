"""The way of one reading, hop by hop: captured, batch, stream, sinks, row, alerts.

    tidegate trace gw-1 4711                       of gateway gw-1, seq 4711
    tidegate trace --device boiler-1 --time -2h    a device's newest reading at that time
    tidegate trace gw-1 4711 --url http://cloud:8080

Exit code 0 when the reading is stored or on its way, 1 when it is lost, given up or dead, or not
known at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from cloud.database import DatabaseError
from cloud.query_time import parse_time
from cloud.sinks.schema import epoch_from_text
from cloud.storage_cli import (
    DATA_HELP,
    add_storage_arguments,
    data_folder,
    said,
    storage_config,
)
from cloud.trace import Trace, TraceError, trace
from cloud.trace_files import find_reading, traced_files
from runtime.config import ConfigError
from runtime.service import StartError
from tidegate.node_api import ask_node

__all__ = ["add_arguments", "run"]

_GOOD = ("stored", "waiting")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("gateway", nargs="?", help="the gateway's id")
    parser.add_argument("seq", nargs="?", type=_seq, help="the reading's number there")
    parser.add_argument("--epoch", help="of which journal of the gateway, 16 hex digits [all]")
    parser.add_argument("--device", help="in place of gateway and seq: whose reading")
    parser.add_argument("--time", default="now", help="with --device: at or before when [now]")
    parser.add_argument("--data", type=Path, metavar="DIR", help=DATA_HELP)
    parser.add_argument("--url", help="HTTP address of a running cloud node in place of --data")
    add_storage_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def _seq(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def run(options: argparse.Namespace) -> int:
    """Print the way; 0 when the reading is where it should be."""
    if (options.device is None) == (options.gateway is None or options.seq is None):
        raise ConfigError("give GATEWAY SEQ, or --device D [--time T]")
    try:
        answers = _ask_node(options) if options.url else asyncio.run(_ask_files(options))
    except (DatabaseError, TraceError) as error:
        raise StartError(said(error)) from None
    if options.json:
        print(json.dumps(answers, indent=2))
    else:
        print("\n".join(line for answer in answers for line in answer["lines"]))
    return 0 if all(answer["verdict"] in _GOOD for answer in answers) else 1


def _ask_node(options: argparse.Namespace) -> list[dict[str, Any]]:
    asked = {
        "gateway": options.gateway,
        "seq": options.seq,
        "epoch": options.epoch,
        "device": options.device,
        "time": options.time if options.device is not None else None,
    }
    parameters = {name: str(value) for name, value in asked.items() if value is not None}
    answers: list[dict[str, Any]] = ask_node(options.url, "trace", parameters)["traces"]
    return answers


async def _ask_files(options: argparse.Namespace) -> list[dict[str, Any]]:
    gateway, seq = options.gateway, options.seq
    config, data = storage_config(options.config), data_folder(options)
    try:
        epoch = None if options.epoch is None else epoch_from_text(options.epoch)
        at_us = parse_time(options.time, time.time_ns() // 1000)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if options.device is not None:
        gateway, epoch, seq = await find_reading(data, options.device, at_us, config)
    async with traced_files(data, config=config) as places:
        return [_shown(one) for one in await trace(places, gateway, seq, epoch)]


def _shown(one: Trace) -> dict[str, Any]:
    hops = [{"place": h.place, "time_us": h.time_us, "text": h.text} for h in one.hops]
    return {"verdict": one.verdict, "hops": hops, "lines": one.lines()}
