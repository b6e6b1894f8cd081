"""Is every reading accounted for? Balances the ledger, or prints the exact gap.

    tidegate audit --data DIR            from the files, beside a running system or without one
    tidegate audit --url http://cloud:8080    asks a running cloud node
    tidegate audit --data DIR --settled 30    also wait until nothing is under way

For each gateway and epoch: assigned = stored + given up + dead letters + waiting. Exit code 0 when
every account balances, 1 when a reading is missing, doubled or was never assigned.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cloud.database import DatabaseError
from cloud.ledger_files import balance_files
from runtime.config import ConfigError
from runtime.service import StartError

__all__ = ["add_arguments", "run"]

_POLL_S = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data",
        type=Path,
        default=Path("tidegate-data"),
        metavar="DIR",
        help="the data folder, of a cloud node and of a gateway if both are here [tidegate-data]",
    )
    where.add_argument("--url", help="HTTP address of a running cloud node in place of --data")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="trust the ranges kept along with the rows; do not count storage row by row",
    )
    parser.add_argument(
        "--settled",
        type=float,
        default=0.0,
        metavar="S",
        help="wait up to so long until nothing waits any more; 1 when something still does",
    )


def run(options: argparse.Namespace) -> int:
    """Print the account; 0 only if it balances."""
    deadline = time.monotonic() + options.settled
    while True:
        try:
            lines, balanced, waiting = _ask(options)
        except DatabaseError as error:
            raise StartError(str(error)) from None
        if not (balanced and waiting and time.monotonic() < deadline):
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
        return _ask_node(options.url)
    balance = asyncio.run(balance_files(options.data, thorough=not options.quick))
    waiting = sum(source.waiting_edge + source.waiting_stream for source in balance.sources)
    return balance.lines(), balance.balanced, waiting


def _ask_node(url: str) -> tuple[list[str], bool, int]:
    accounts = _get(url.rstrip("/") + "/api/v1/ledger")
    lines = []
    for account in accounts:
        waiting = account["waiting_edge"] + account["waiting_stream"]
        lines.append(
            f"{account['gateway']} {account['epoch']}: {account['assigned']} assigned = "
            f"{account['stored']} stored + {account['given_up']} given up + "
            f"{account['dead_letters']} dead letters + {waiting} waiting"
            + (f" + {account['missing']} missing" if account["missing"] else "")
        )
        lines += [f"  missing: {first}-{last}" for first, last in account["gaps"]]
    bad = sum(not account["balanced"] for account in accounts)
    lines.append(
        f"does not balance: {bad} of {len(accounts)} accounts"
        if bad
        else f"balances: {len(accounts)} accounts"
    )
    waiting = sum(one["waiting_edge"] + one["waiting_stream"] for one in accounts)
    return lines, not bad, waiting


def _get(url: str) -> Any:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: expected http://host:port, got '{url}'")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - scheme checked
            body = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise StartError(f"{url}: {error}; is a cloud node serving HTTP there?") from None
    return body["items"] if isinstance(body, dict) else body
