"""Write what storage has lost into it once more, from the stream.

    tidegate replay --data DIR                    a node that does not run
    tidegate replay --url http://cloud:8080       a running one

For a storage that was rolled back, restored from a backup or edited by hand: `tidegate audit` shows
the gap before and none after, as long as the stream still keeps the entries (stream.replay_s).
Exit code 0 when nothing is lost any more.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from cloud.config import CloudConfig, StorageConfig
from cloud.database import DatabaseError, DatabaseMissing
from cloud.dead_letters import opened_offline
from cloud.ledger_files import balance_files
from cloud.replay import Replayed, replay
from cloud.sinks.contract import SinkUnavailable
from cloud.storage_cli import add_storage_arguments, data_folder, said, storage_config
from cloud.stream.contract import StreamError
from runtime.clock import SystemClock
from runtime.service import StartError
from tidegate.node_api import ask_node

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder of a cloud node that does not run [that of -c, or tidegate-data]",
    )
    where.add_argument("--url", help="HTTP address of a running cloud node in place of --data")
    add_storage_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Replay; 0 when storage has everything the stream took."""
    if options.url:
        answer = ask_node(options.url, "replay", body={})
        print(answer["line"])
        return 1 if answer["gone"] or answer["refused"] else 0
    try:
        done = asyncio.run(_replay_files(data_folder(options), storage_config(options.config)))
    except (DatabaseError, SinkUnavailable, StreamError) as error:
        raise StartError(said(error)) from None
    print(done.line())
    return 1 if done.gone or done.refused else 0


async def _replay_files(data: Path, storage_at: StorageConfig) -> Replayed:
    if not (stream_file := data / "cloud" / "stream.db").exists():
        raise DatabaseMissing(stream_file)
    config = CloudConfig(data=data, storage=storage_at)
    async with opened_offline(data, config, SystemClock()) as (stream, runners):
        (storage,) = runners
        return await replay(stream, storage, await balance_files(data, config=storage_at))
