"""Batches a cloud refused and entries a sink could not take: listed, shown, tried again, dropped.

    tidegate deadletter list                             of gateway and cloud node in --data
    tidegate deadletter list --url http://cloud:8080     of a running cloud node
    tidegate deadletter show edge:3
    tidegate deadletter redrive edge:3 -c edge.toml      sends it to the cloud once more
    tidegate deadletter redrive --all --url http://cloud:8080
    tidegate deadletter discard storage:12:34

A gateway's letters are named edge:N, a sink's SINK:PARTITION:POSITION. What is redriven keeps its
identity, so it is stored once however often it comes; what is discarded stays in the ledger as
given up. A gateway may run meanwhile; for the letters of a running cloud node give --url.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cloud.config import CloudConfig
from cloud.database import DatabaseError
from cloud.dead_letters import (
    DeadLetterUnknown,
    chosen,
    discard,
    letter_line,
    letter_lines,
    opened_offline,
    redrive,
)
from cloud.ledger_files import StreamFile
from cloud.query_time import iso
from cloud.sinks.contract import SinkUnavailable
from cloud.storage_cli import storage_config
from cloud.stream.contract import StreamError
from edge.config import EdgeConfig
from edge.dead_letters import DeadLetter, DeadLetterError, JournalDeadLetters, send_again
from runtime.clock import SystemClock
from runtime.config import ConfigError, load
from runtime.service import StartError
from tidegate.node_api import ask_node

__all__ = ["add_arguments", "run"]

_ACTIONS = ("list", "show", "redrive", "discard")
_ERRORS = (DatabaseError, DeadLetterError, DeadLetterUnknown, SinkUnavailable, StreamError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("action", choices=_ACTIONS)
    parser.add_argument("ids", nargs="*", metavar="ID", help="as `list` shows them")
    parser.add_argument("--all", action="store_true", help="redrive or discard: all of them")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder [that of -c or TIDEGATE_DATA, or tidegate-data]",
    )
    parser.add_argument("--url", help="HTTP address of a running cloud node in place of --data")
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="the gateway's TOML file, for redrive; TIDEGATE_... count as for `tidegate edge`",
    )


def run(options: argparse.Namespace) -> int:
    """Do it; 0 when everything asked for was done."""
    if options.action == "list" and options.ids:
        raise ConfigError("deadletter list: takes no ID; use show ID")
    if options.action == "show" and not options.ids:
        raise ConfigError("deadletter show: give an ID")
    if options.action in ("redrive", "discard") and bool(options.ids) == options.all:
        raise ConfigError(f"deadletter {options.action}: give IDs, or --all")
    try:
        if options.url:
            return _on_node(options)
        return asyncio.run(_on_files(options))
    except _ERRORS as error:
        raise StartError(str(error)) from None


def _on_node(options: argparse.Namespace) -> int:
    url, action = options.url, options.action
    if action == "list":
        letters = ask_node(url, "deadletters")["letters"]
        print("\n".join(one["line"] for one in letters) or "no dead letters")
    elif action == "show":
        for one in options.ids:
            print("\n".join(ask_node(url, f"deadletters/{one}")["lines"]))
    else:
        body = {"ids": None if options.all else options.ids}
        answer = ask_node(url, f"deadletters/{action}", body=body)
        return _said(action, answer["done"], answer["left"])
    return 0


async def _on_files(options: argparse.Namespace) -> int:
    edge = load(EdgeConfig, file=options.config, environment=os.environ)
    data: Path = options.data or edge.data
    journal = JournalDeadLetters(data / "edge" / "journal.db")
    of_edge = [one for one in options.ids if one.startswith("edge:")]
    of_cloud = [one for one in options.ids if not one.startswith("edge:")]
    has_journal, has_stream = journal.path.exists(), (data / "cloud" / "stream.db").exists()
    if not (has_journal or has_stream):
        raise DeadLetterUnknown(f"{data}: neither a gateway's data folder nor a cloud node's")
    every = options.all or options.action == "list"
    at_edge: list[DeadLetter] = []
    if of_edge or (every and has_journal):
        at_edge = _of_edge(await journal.letters(), of_edge, every=every)
    wanted = None if every else of_cloud
    with_cloud = bool(of_cloud) or (every and has_stream)
    if options.action in ("list", "show"):
        lines = [line for one in at_edge for line in _edge_lines(one, options.action)]
        lines += await _cloud_lines(data, wanted, options.action) if with_cloud else []
        print("\n".join(lines) or "no dead letters")
        return 0
    done, left = 0, 0
    if at_edge:  # a gateway that was named by a flag, or by its host, keeps its readings' identity
        edge = replace(edge, gateway=await journal.owner() or edge.gateway)
    for letter in at_edge:
        if options.action == "redrive":
            await send_again(edge, letter)
        await journal.forget(letter)
        done += 1
    if with_cloud:
        more, left = await _change_cloud(data, wanted, options.action)
        done += more
    return _said(options.action, done, left)


def _said(action: str, done: int, left: int) -> int:
    word = {"redrive": "redriven", "discard": "discarded"}[action]
    print(f"{done} {word}" + (f", {left} still dead: see list for the cause" if left else ""))
    return 1 if left else 0


def _of_edge(letters: Sequence[DeadLetter], ids: Sequence[str], *, every: bool) -> list[DeadLetter]:
    by_id = {f"edge:{letter.number}": letter for letter in letters}
    if every:
        return list(letters)
    for one in ids:
        if one not in by_id:
            raise DeadLetterUnknown(f"no dead letter '{one}'; there are {len(by_id)}, see list")
    return [by_id[one] for one in dict.fromkeys(ids)]


def _edge_lines(letter: DeadLetter, action: str) -> list[str]:
    count = letter.last_seq - letter.first_seq + 1
    line = (
        f"edge:{letter.number}  {iso(letter.time_us)}  lane {letter.lane} seq {letter.first_seq}"
        f"-{letter.last_seq} ({count})  {letter.cause}"
    )
    if action == "list":
        return [line]
    try:
        readings = letter.batch().readings
    except DeadLetterError as error:
        return [line, f"  {error}", f"  {len(letter.body)} bytes: {letter.body[:64].hex()}"]
    lines = [line]
    for seq, source, time_us, payload in zip(
        readings.seqs, readings.source_index, readings.times_us, readings.payloads, strict=True
    ):
        topic, device = readings.sources[source]
        text = repr(payload[:80])[2:-1]
        lines.append(f"  seq {seq}  {iso(time_us)}  {device}  {topic}  {text}")
    return lines


async def _cloud_lines(data: Path, ids: Sequence[str] | None, action: str) -> list[str]:
    stream = StreamFile(data / "cloud" / "stream.db")
    await stream.open()
    try:
        letters = await chosen(stream, ids)
    finally:
        await stream.close()
    if action == "list":
        return [letter_line(letter) for letter in letters]
    return [line for letter in letters for line in letter_lines(letter)]


async def _change_cloud(data: Path, ids: Sequence[str] | None, action: str) -> tuple[int, int]:
    clock = SystemClock()
    config = CloudConfig(data=data, storage=storage_config(None))
    async with opened_offline(data, config, clock) as (stream, runners):
        letters = await chosen(stream, ids)
        if action == "redrive":
            taken = await redrive(runners, letters)
            return taken, len(letters) - taken
        await discard(stream, letters, clock.wall_us())
        return len(letters), 0
