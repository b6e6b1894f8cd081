"""`tidegate query`: look into stored readings.

tidegate query boiler-7                                 the newest readings of a device
tidegate query 'boiler-*' --since -2h --field temp      a JSON field of several devices
tidegate query boiler-7 --since -1d --field temp --every 5m --agg max --format plot
tidegate query --topic 'devices/+/alarm' --format json --order asc | jq .
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
from pathlib import Path

from cloud.database import DatabaseError
from cloud.query import AGGREGATES, QueryError, QueryResult, ReadingsQuery
from cloud.query_format import FORMATS, formatted
from cloud.query_time import parse_duration, parse_time
from cloud.storage import StorageReader, storage_reader
from cloud.storage_cli import (
    DATA_HELP,
    add_storage_arguments,
    data_folder,
    said,
    storage_config,
)
from cloud.storage_file import StorageFile
from runtime.clock import SystemClock

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    # lets `--since -2h` be a value: argparse takes only whole numbers for negative ones
    parser._negative_number_matcher = re.compile(r"-\d\S*")  # noqa: SLF001
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="device ids, as globs [all]")
    parser.add_argument("--data", type=Path, metavar="DIR", help=DATA_HELP)
    add_storage_arguments(parser, file=True)
    parser.add_argument("--topic", default="#", help="an MQTT topic filter [#]")
    parser.add_argument("--since", metavar="TIME", help="from: -2h, an ISO time, epoch seconds")
    parser.add_argument("--until", metavar="TIME", help="up to: as --since, or now")
    parser.add_argument("--field", help="a value in JSON payloads, such as sensors[0].temp")
    parser.add_argument("--every", metavar="TIME", help="aggregate in steps: 10s, 5m, 1h")
    parser.add_argument("--agg", default="mean", choices=AGGREGATES, help="how to [mean]")
    parser.add_argument("--order", default="desc", choices=("asc", "desc"), help="by time [desc]")
    parser.add_argument("--limit", type=int, default=100, help="rows or steps at most [100]")
    parser.add_argument("--format", default="table", choices=FORMATS, help="[table]")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="give up after so long [60]"
    )


def run(options: argparse.Namespace) -> int:
    """Print the answer; 1 when there is none to be had, 2 when the question makes no sense."""
    try:
        query = _query(options)
    except (QueryError, ValueError) as error:
        sys.stderr.write(f"tidegate query: {error}\n")
        return 2
    try:
        if options.db:
            storage: StorageReader = StorageFile(options.db)
        else:
            storage = storage_reader(data_folder(options), storage_config(options.config))
        result = asyncio.run(storage.ask(query, timeout_s=options.timeout))
        size = shutil.get_terminal_size((100, 30))
        text = formatted(
            result,
            options.format,
            width=size.columns,
            height=max(10, min(size.lines - 2, 30)),
            color=sys.stdout.isatty(),
        )
    except (QueryError, DatabaseError) as error:
        sys.stderr.write(f"tidegate query: {said(error)}\n")
        return 1
    sys.stdout.write(text + "\n")
    _tell_of_more(result, options)
    return 0


def _query(options: argparse.Namespace) -> ReadingsQuery:
    now_us = SystemClock().wall_us()
    return ReadingsQuery(
        devices=tuple(options.devices),
        topic=options.topic,
        start_us=parse_time(options.since, now_us) if options.since else None,
        end_us=parse_time(options.until, now_us) if options.until else None,
        field=options.field,
        every_us=parse_duration(options.every) if options.every else None,
        aggregate=options.agg,
        newest_first=options.order == "desc",
        limit=options.limit,
    )


def _tell_of_more(result: QueryResult, options: argparse.Namespace) -> None:
    """Say that there is more, where it cannot get into a pipe."""
    if result.next and sys.stderr.isatty():
        sys.stderr.write(f"there is more: --limit is {options.limit}\n")
