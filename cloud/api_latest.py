"""Paths of the HTTP API for latest values: of one device, and pushed as they change.

Each value says whether it is stored: whether storage's own cursor has passed it. One that is not
may be shown before a query finds it, and is never shown as more than it is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import StreamingResponse

from cloud.api_models import LatestValues, Problem
from cloud.latest import Latest, LatestReading
from cloud.latest_changes import HEARERS_MAX
from cloud.query_format import payload_json
from cloud.query_time import iso
from cloud.sinks.schema import epoch_text
from cloud.views import NodeView

__all__ = ["latest_routes", "value_json"]

_ALIVE_S = 15.0
_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem},
    422: {"model": Problem},
    503: {"model": Problem},
}


def latest_routes(node: NodeView, table: Latest) -> APIRouter:
    """Return the paths, to be included below /api/v1."""
    router = APIRouter(responses=_ERRORS)

    @router.get("/devices/{device:path}/latest", response_model=LatestValues)
    async def latest(device: str) -> Response:
        """Return the newest reading of each topic of a device."""
        readings = table.device(device)
        if not readings:
            if not table.complete:
                raise HTTPException(
                    503, f"device '{device}' is not known yet: latest values are being rebuilt"
                )
            raise HTTPException(404, f"device '{device}' has sent nothing; see /api/v1/devices")
        stored = await node.stored_positions()
        values = [value_json(reading, stored) for reading in readings]
        body = json.dumps({"device": device, "values": values}, allow_nan=False)
        return Response(body, media_type="application/json")

    @router.get("/latest/changes", response_class=StreamingResponse)
    async def changes(
        match: Annotated[str, Query(description="A glob of device ids.", max_length=256)] = "*",
    ) -> Response:
        """Push latest values as they change, as server-sent events.

        `event: value` has a device's value as above, `event: missed` how many could not be kept
        for a client that reads too slowly: it asks for what it wants again.
        """
        if len(table.changes.hearers) >= HEARERS_MAX:
            raise HTTPException(503, f"{HEARERS_MAX} clients listen already")
        return StreamingResponse(
            _events(node, table, match),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    return router


async def _events(node: NodeView, table: Latest, match: str) -> AsyncIterator[str]:
    with table.changes.hear(match) as hearer:
        yield ": values as they change\n\n"
        while not hearer.ended:
            heard = await hearer.news(_ALIVE_S)
            if heard.missed:
                yield f'event: missed\ndata: {{"missed": {heard.missed}}}\n\n'
            stored = await node.stored_positions()
            for reading in heard.readings:
                value = {"device": reading.device, **value_json(reading, stored)}
                yield f"event: value\ndata: {json.dumps(value, allow_nan=False)}\n\n"
            if not heard.readings:
                yield ": \n\n"  # whoever is gone is found out so


def value_json(reading: LatestReading, stored: Mapping[int, int]) -> dict[str, Any]:
    """Return a value as the API shows it.

    Args:
        reading: The value.
        stored: How far storage has got, by partition.
    """
    return {
        "topic": reading.topic,
        "time": iso(reading.time_us),
        "time_us": reading.time_us,
        "received_us": reading.received_us,
        "gateway": reading.gateway,
        "epoch": epoch_text(reading.epoch),
        "seq": reading.seq,
        "qos": reading.qos,
        **payload_json(reading.payload),
        "payload_bytes": reading.payload_bytes,
        "stored": reading.position <= stored.get(reading.partition, 0),
    }
