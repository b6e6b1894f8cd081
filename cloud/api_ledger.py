"""Paths of the HTTP API by which readings are accounted for: audit, trace.

docs/ledger.md. What is answered here is what the commands print: one computation, two ways to it.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, Field

from cloud.database import DatabaseError
from cloud.parts import CloudNode
from cloud.query_time import parse_time
from cloud.sinks.schema import epoch_from_text
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

    verdict: str = Field(description="stored, waiting, given-up, dead-letter or lost.")
    hops: list[HopView]
    lines: list[str]


class Traces(BaseModel):
    """One way an epoch in which that seq was assigned."""

    traces: list[TraceView]


def ledger_routes(node: CloudNode) -> APIRouter:
    """Return the paths, to be included below /api/v1."""
    router = APIRouter()

    @router.get("/audit")
    async def audit(
        thorough: Annotated[
            bool, Query(description="Count storage row by row: seconds a million readings.")
        ] = False,
    ) -> Audit:
        """Balance the ledger: assigned = stored + given up + dead letters + waiting."""
        try:
            report = await node.balance(thorough=thorough)
        except (DatabaseError, StreamError) as error:
            raise HTTPException(503, str(error)) from None
        return Audit(
            balanced=report.balanced, waiting=report.waiting, lines=report.lines(detail=True)
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
        data = node.config.data
        sinks = {name: runner.positions for name, runner in node.sinks.runners.items()}
        try:
            if device is not None:
                gateway, number, seq = await find_reading(data, device, at_us)
            assert gateway is not None
            assert seq is not None
            async with traced_files(data, node.stream, sinks) as places:
                found = await trace(places, gateway, seq, number)
        except TraceError as error:
            raise HTTPException(404, str(error)) from None
        except (DatabaseError, StreamError) as error:
            raise HTTPException(503, str(error)) from None
        return Traces(traces=[_traced(one) for one in found])

    return router


def _traced(one: Trace) -> TraceView:
    hops = [HopView(place=hop.place, time_us=hop.time_us, text=hop.text) for hop in one.hops]
    return TraceView(verdict=one.verdict, hops=hops, lines=one.lines())
