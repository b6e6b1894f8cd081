"""Paths of the HTTP API by which readings are accounted for: audit, trace, dead letters, replay.

docs/ledger.md. What is answered here is what the commands print: one computation, two ways to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import BaseModel, Field

from cloud.api_guard import json_body
from cloud.database import DatabaseError
from cloud.dead_letters import (
    DeadLetterUnknown,
    chosen,
    discard,
    letter_id,
    letter_line,
    letter_lines,
    redrive,
)
from cloud.ledger_files import picture_files
from cloud.ledger_picture import CELLS
from cloud.parts import CloudNode
from cloud.query_time import parse_time
from cloud.replay import replay
from cloud.sinks.contract import SinkUnavailable
from cloud.sinks.schema import epoch_from_text, epoch_text
from cloud.stream.contract import StreamError
from cloud.trace import Trace, TraceError, trace
from cloud.trace_files import find_reading, traced_files

__all__ = ["ledger_routes"]


class Audit(BaseModel):
    """The balance of everything, as `tidegate audit` prints it."""

    balanced: bool
    waiting: int = Field(description="Readings under way.")
    lines: list[str]


class HopView(BaseModel):
    """One place, and what it says of the reading."""

    place: str
    time_us: int | None
    text: str


class TraceView(BaseModel):
    """The way of one reading."""

    verdict: str = Field(description="As `tidegate trace` prints it; docs/ledger.md.")
    hops: list[HopView]
    lines: list[str]


class Traces(BaseModel):
    """One way an epoch in which that seq was assigned."""

    traces: list[TraceView]


class DeadLetterView(BaseModel):
    """An entry that a sink could not take."""

    id: str
    sink: str
    gateway: str
    epoch: str
    readings: int
    cause: str
    tries: int
    time_us: int
    line: str


class DeadLetters(BaseModel):
    """All dead letters of the node's sinks."""

    letters: list[DeadLetterView]


class Lines(BaseModel):
    """Text, line by line."""

    lines: list[str]


class Wanted(BaseModel):
    """Which dead letters are meant."""

    ids: list[str] | None = Field(None, description="None means all.", max_length=1000)


class Done(BaseModel):
    """What became of them."""

    done: int
    left: int


class ReplayView(BaseModel):
    """What a replay did: cloud/replay.py."""

    entries: int
    refused: int
    found: int
    gone: int
    line: str


def ledger_routes(node: CloudNode) -> APIRouter:
    """Return the paths, to be included below /api/v1."""
    router = APIRouter()
    router.include_router(_account_routes(node))
    router.include_router(_dead_letter_routes(node))
    return router


def _account_routes(node: CloudNode) -> APIRouter:
    """Where readings are: of all of them together, and of one."""
    router = APIRouter()

    @router.get("/audit")
    async def audit(
        thorough: Annotated[
            bool, Query(description="Count storage row by row: seconds a million readings.")
        ] = False,
        hours: Annotated[
            float | None, Query(gt=0, le=87_600, description="With a picture of so many hours.")
        ] = None,
        cells: Annotated[
            int, Query(ge=16, le=1000, description="How wide the picture is.")
        ] = CELLS,
    ) -> Audit:
        """Balance the ledger: assigned = stored + given up + dead letters + waiting."""
        try:
            report = await node.balance(thorough=thorough)
            drawn: list[str] = []
            if hours is not None:
                since_us = node.clock.wall_us() - round(hours * 3_600_000_000)
                drawn = await picture_files(node.config.data, report, since_us, cells=cells)
        except (DatabaseError, StreamError) as error:
            raise HTTPException(503, str(error)) from None
        return Audit(
            balanced=report.balanced,
            waiting=report.waiting,
            lines=[*report.lines(detail=True), *drawn],
        )

    @router.get("/trace")
    async def way(
        gateway: Annotated[str | None, Query(description="Its id.")] = None,
        seq: Annotated[int | None, Query(description="The reading's number there.")] = None,
        epoch: Annotated[str | None, Query(description="Of which journal; all if absent.")] = None,
        device: Annotated[str | None, Query(description="In place of gateway and seq.")] = None,
        time: Annotated[str, Query(description="With device: at or before when.")] = "now",
    ) -> Traces:
        """Follow one reading, hop by hop."""
        if (device is None) == (gateway is None or seq is None):
            raise HTTPException(422, "give gateway and seq, or device and time")
        try:
            number = None if epoch is None else epoch_from_text(epoch)
            at_us = parse_time(time, node.clock.wall_us())
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        data, storage = node.config.data, node.config.storage
        sinks = await node.sinks.positions()
        try:
            if device is not None:
                gateway, number, seq = await find_reading(data, device, at_us, storage)
            assert gateway is not None
            assert seq is not None
            async with traced_files(data, node.stream, sinks, storage) as places:
                found = await trace(places, gateway, seq, number)
        except TraceError as error:
            raise HTTPException(404, str(error)) from None
        except (DatabaseError, StreamError) as error:
            raise HTTPException(503, str(error)) from None
        return Traces(traces=[_traced(one) for one in found])

    return router


def _dead_letter_routes(node: CloudNode) -> APIRouter:
    """What storage or another sink lacks, and how it gets it after all."""
    router = APIRouter()

    @router.get("/deadletters")
    async def dead_letters() -> DeadLetters:
        """List the entries that a sink could not take."""
        with _told():
            letters = await chosen(node.stream, None)
        return DeadLetters(
            letters=[
                DeadLetterView(
                    id=letter_id(one),
                    sink=one.sink,
                    gateway=one.entry.gateway,
                    epoch=epoch_text(one.entry.epoch),
                    readings=one.entry.count,
                    cause=one.cause,
                    tries=one.tries,
                    time_us=one.time_us,
                    line=letter_line(one),
                )
                for one in letters
            ]
        )

    @router.get("/deadletters/{name}")
    async def dead_letter(name: str) -> Lines:
        """Show one dead letter with its readings."""
        with _told():
            (letter,) = await chosen(node.stream, [name])
        return Lines(lines=letter_lines(letter))

    @router.post("/deadletters/redrive", dependencies=[Depends(json_body)])
    async def redrive_letters(wanted: Wanted) -> Done:
        """Offer dead letters to their sinks once more."""
        with _told():
            letters = await chosen(node.stream, wanted.ids)
            taken = await redrive(list(node.sinks.runners.values()), letters)
        return Done(done=taken, left=len(letters) - taken)

    @router.post("/deadletters/discard", dependencies=[Depends(json_body)])
    async def discard_letters(wanted: Wanted) -> Done:
        """Throw dead letters away for good; the ledger shows them as given up."""
        with _told():
            letters = await chosen(node.stream, wanted.ids)
            await discard(node.stream, letters, node.clock.wall_us())
        return Done(done=len(letters), left=0)

    @router.post("/replay", dependencies=[Depends(json_body)])
    async def replay_lost() -> ReplayView:
        """Write what storage has lost into it once more, from the stream."""
        storage = node.sinks.runners.get("storage")
        if storage is None:
            raise HTTPException(404, "this node has no storage; see storage.enabled")
        with _told():
            done = await replay(node.stream, storage, await node.balance(thorough=True))
        return ReplayView(**asdict(done), line=done.line())

    return router


@contextmanager
def _told() -> Iterator[None]:
    """Answer what went wrong with its line."""
    try:
        yield
    except DeadLetterUnknown as error:
        raise HTTPException(404, str(error)) from None
    except (DatabaseError, SinkUnavailable, StreamError) as error:
        raise HTTPException(503, str(error)) from None


def _traced(one: Trace) -> TraceView:
    hops = [HopView(place=hop.place, time_us=hop.time_us, text=hop.text) for hop in one.hops]
    return TraceView(verdict=one.verdict, hops=hops, lines=one.lines())
