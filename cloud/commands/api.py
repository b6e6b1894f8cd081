"""Paths of the HTTP API for commands: send one, look at those that were sent."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import BaseModel, Field

from cloud.api_guard import BODY_BYTES_MAX, json_body_of
from cloud.commands.contract import CommandRefused, CommandRow
from cloud.database import DatabaseError
from mqtt.topics import topic_name_fault

__all__ = ["CommandSource", "command_routes"]

_PAGE_MAX = 1_000
_EXPIRY_S_MAX = 0xFFFFFFFF


class CommandSource(Protocol):
    """What the API needs of the commands part."""

    async def submit(
        self, topic: str, payload: bytes, *, qos: int, expiry_s: int | None, command_id: str
    ) -> CommandRow:
        """Take a command; raises CommandRefused (an exception with `code`) or DatabaseError."""
        ...

    async def find(self, command_id: str) -> CommandRow | None:
        """Return one command."""
        ...

    async def newest(
        self, device: str | None, state: str | None, limit: int
    ) -> Sequence[CommandRow]:
        """Return commands, newest first."""
        ...


class NewCommand(BaseModel):
    """A command to be sent."""

    topic: str = Field(description="Such as devices/boiler-1/cmd/valve.")
    payload: str = ""
    payload_base64: str | None = Field(None, description="In place of payload, for any bytes.")
    qos: int = Field(1, ge=1, le=2)
    expiry_s: int | None = Field(None, ge=1, le=_EXPIRY_S_MAX)
    id: str = Field("", max_length=128, description="The same id is the same command.")


class CommandView(BaseModel):
    """A command and what became of it."""

    id: str
    device: str
    topic: str
    state: str
    gateway: str
    detail: str
    qos: int
    payload_bytes: int
    created_us: int
    expires_us: int
    changed_us: int


class Commands(BaseModel):
    """Commands, newest first."""

    commands: list[CommandView]


def command_routes(source: CommandSource, payload_bytes_max: int) -> APIRouter:
    """Return the paths, to be included below /api/v1.

    Args:
        source: The commands.
        payload_bytes_max: Of one; a body may be as large as that takes in base64 or as JSON text.
    """
    router = APIRouter()
    body_bytes_max = BODY_BYTES_MAX + 2 * payload_bytes_max

    @router.get("/commands")
    async def commands(
        device: Annotated[str | None, Query(description="Only to this one.")] = None,
        state: Annotated[str | None, Query(description="Only in this state.")] = None,
        limit: Annotated[int, Query(ge=1, le=_PAGE_MAX)] = 100,
    ) -> Commands:
        """List commands: waiting, held, delivered, expired, no such device."""
        try:
            rows = await source.newest(device, state, limit)
        except DatabaseError as error:
            raise HTTPException(503, str(error)) from None
        return Commands(commands=[_view(row) for row in rows])

    @router.get("/commands/{command_id}")
    async def command(command_id: str) -> CommandView:
        """Return one command."""
        try:
            row = await source.find(command_id)
        except DatabaseError as error:
            raise HTTPException(503, str(error)) from None
        if row is None:
            raise HTTPException(404, f"no command '{command_id}'; see /api/v1/commands")
        return _view(row)

    @router.post("/commands", dependencies=[Depends(json_body_of(body_bytes_max))])
    async def submit(wanted: NewCommand) -> CommandView:
        """Take a command: durable when this answers, sent when its device can be reached."""
        fault = topic_name_fault(wanted.topic)
        if fault is not None:
            raise HTTPException(422, f"topic: {fault.detail}")
        try:
            row = await source.submit(
                wanted.topic,
                _payload(wanted),
                qos=wanted.qos,
                expiry_s=wanted.expiry_s,
                command_id=wanted.id,
            )
        except DatabaseError as error:
            raise HTTPException(503, str(error)) from None
        except CommandRefused as error:
            raise HTTPException(422, str(error)) from None
        return _view(row)

    return router


def _payload(wanted: NewCommand) -> bytes:
    if wanted.payload_base64 is None:
        return wanted.payload.encode()
    try:
        return base64.b64decode(wanted.payload_base64, validate=True)
    except binascii.Error as error:
        raise HTTPException(422, f"payload_base64: {error}") from None


def _view(row: CommandRow) -> CommandView:
    values: dict[str, Any] = {
        name: getattr(row, name) for name in CommandView.model_fields if name != "id"
    }
    return CommandView(id=row.command_id, **values)
