"""Is every reading accounted for? Balances the ledger, or prints the exact gap.

    tidegate audit --data DIR            from the files, beside a running system or without one
    tidegate audit --url http://cloud:8080    asks a running cloud node
    tidegate audit --picture --hours 6   and draws where the readings of six hours stand
    tidegate audit --data DIR --settled 30    wait until nothing is under way, then say

While a system is at work some readings are always under way: those are waiting, not missing. Of a
gateway whose journal is not in sight its own word counts, up to which seq nothing waits any more.

For each gateway and epoch (a journal is an epoch, so a new card is a new account): assigned =
stored + given up + dead letters + waiting; what the stream holds, what each sink took, and every
tombstone with its lane, range, count and reason. Storage is counted from its rows. Exit code 0 when
every account balances, 1 when a reading is missing, doubled or was never assigned.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import time
from pathlib import Path

from cloud.database import DatabaseError
from cloud.ledger_files import balance_files, picture_files
from cloud.ledger_picture import CELLS
from cloud.storage_cli import add_storage_arguments, data_folder, said, storage_config
from runtime.service import StartError
from tidegate.node_api import ask_node

__all__ = ["add_arguments", "run"]

_POLL_S = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder, of a cloud node and of a gateway if both are here [that of -c, or"
        " tidegate-data]",
    )
    where.add_argument("--url", help="HTTP address of a running cloud node in place of --data")
    add_storage_arguments(parser)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="trust the ranges kept along with the rows; do not count storage row by row",
    )
    parser.add_argument(
        "--picture",
        action="store_true",
        help="draw where the readings of the last hours stand",
    )
    parser.add_argument(
        "--hours", type=_hours, default=3.0, metavar="H", help="of --picture: how many hours [3]"
    )
    parser.add_argument(
        "--settled",
        type=float,
        default=0.0,
        metavar="S",
        help="wait up to so long until nothing waits and nothing is missing any more; 1 when"
        " something still does or is, and the last line says which of the two",
    )


def _hours(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (hours := float(text)) <= 87_600:
            return hours
    raise argparse.ArgumentTypeError(f"hours are more than 0 and at most 87600, not {text}")


def run(options: argparse.Namespace) -> int:
    """Print the account; 0 only if it balances."""
    deadline = time.monotonic() + options.settled
    while True:
        try:
            lines, balanced, waiting = _ask(options)
        except DatabaseError as error:
            raise StartError(said(error)) from None
        # what is missing now may be on its way past a gateway that has not said so yet
        if (balanced and not waiting) or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S)
    print("\n".join(lines))
    if balanced and waiting and options.settled:
        print(f"{waiting} readings are still under way", file=sys.stderr)
        return 1
    return 0 if balanced else 1


def _ask(options: argparse.Namespace) -> tuple[list[str], bool, int]:
    """Return the report's lines, whether it balances, and how many readings wait."""
    if options.url:
        asked = {"thorough": "false" if options.quick else "true"}
        if options.picture:
            asked |= {"hours": str(options.hours), "cells": str(_cells())}
        answer = ask_node(options.url, "audit", asked)
        return answer["lines"], answer["balanced"], answer["waiting"]
    data = data_folder(options)
    report = asyncio.run(
        balance_files(data, thorough=not options.quick, config=storage_config(options.config))
    )
    lines = report.lines(detail=True)
    if options.picture:
        since_us = time.time_ns() // 1000 - round(options.hours * 3_600_000_000)
        drawn = picture_files(data, report, since_us, cells=_cells())
        lines += asyncio.run(drawn)
    return lines, report.balanced, report.waiting


def _cells() -> int:
    """Return how wide a picture may be: the terminal's width, or what fits into any."""
    return min(1000, max(16, shutil.get_terminal_size((CELLS + 4, 24)).columns - 4))
