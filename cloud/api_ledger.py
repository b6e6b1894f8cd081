"""Paths of the HTTP API by which readings are accounted for: audit.

docs/ledger.md. What is answered here is what the commands print: one computation, two ways to it.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, Field

from cloud.database import DatabaseError
from cloud.parts import CloudNode
from cloud.stream.contract import StreamError

__all__ = ["ledger_routes"]


class Audit(BaseModel):
    """The balance of everything, as `tidegate audit` prints it."""

    balanced: bool
    waiting: int = Field(description="Readings under way.")
    lines: list[str]


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

    return router
