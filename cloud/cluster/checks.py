"""What a node makes sure of before it trusts a cluster: right one, whole, durable, one version.

An acknowledgement says that a quorum of three has fsynced. That is so only with three replicas, on
files, and servers with `sync_interval: always`, which a client cannot ask for: it is read from the
servers' monitoring pages (`stream.monitors`), or the operator states it (`stream.servers_fsync`).
A cluster that is less is refused, unless `stream.durability = "relaxed"` says to go on and tell.
PAINS P26.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cloud.cluster.applying import plan, stream_epoch
from cloud.cluster.connection import (
    ApiError,
    ClusterError,
    Connection,
    NoResponders,
    Unanswered,
    Unreachable,
)
from cloud.cluster.layout import Layout
from cloud.cluster.reading import insist

__all__ = ["DURABLE", "RELAXED", "Checked", "check_cluster"]

DURABLE = "r3-fsync"
RELAXED = "relaxed"
_DURABILITY_KEYS = ("num_replicas is", "max_age is", "max_msgs is", "discard is")
_OPERATORS_KEYS = ("max_bytes is",)  # sizes are whoever applied the layout's to choose
_SYNC_KEYS = frozenset(("sync_always", "sync_interval"))
_PAGE_S = 5.0
_PAYLOAD_BYTES = 1 << 20  # what records and pieces of checkpoints are cut for


@dataclass(slots=True, frozen=True)
class Checked:
    """What was found."""

    epoch: int
    durability: str  # DURABLE or RELAXED
    weak: tuple[str, ...]  # why it is not durable, one line each
    notes: tuple[str, ...]  # what differs from the layout without harm


async def check_cluster(
    connection: Connection, layout: Layout, *, monitors: Sequence[str], servers_fsync: bool
) -> Checked:
    """Look at a cluster; nothing is changed.

    Args:
        connection: To it.
        layout: What is expected.
        monitors: HTTP addresses of the servers' monitoring.
        servers_fsync: The operator states `sync_interval: always`.

    Raises:
        ClusterError: it cannot be used at all; one line that says why and what to do.
    """
    await _check_account(connection)
    if connection.payload_bytes_max < _PAYLOAD_BYTES:
        raise ClusterError(
            f"{connection.server} takes messages of at most {connection.payload_bytes_max:,} bytes:"
            " set 'max_payload: 1MB' on all servers"
        )
    epoch = await stream_epoch(connection, layout)
    weak: list[str] = []
    notes: list[str] = []
    for step in await plan(connection, layout):
        if step.action in ("lost", "create"):
            raise ClusterError(
                f"{step.stream} is missing: {step.detail or 'it was never made'};"
                " see 'tidegate cluster plan'"
            )
        if step.action in ("mirror", "open"):
            raise ClusterError(f"{step.stream}: {step.detail}; see 'tidegate cluster plan'")
        if step.action == "conflict" or "subjects is" in step.detail:
            raise ClusterError(f"{step.stream} was altered: {step.detail}")
        parts = step.detail.split("; ")
        weak += [
            f"{step.stream}: {part} ('tidegate cluster apply' sets it)"
            for part in parts
            if part.startswith(_DURABILITY_KEYS)
        ]
        notes += [
            f"{step.stream}: {part}"
            for part in parts
            if not part.startswith((*_DURABILITY_KEYS, *_OPERATORS_KEYS))
        ]
    if layout.replicas < 3:
        weak.append(f"streams have {layout.replicas} replicas, not 3")
    if monitors:
        weak += await _check_servers(monitors)
    elif not servers_fsync:
        weak.append(
            "nobody says that the servers run with 'sync_interval: always': name their monitoring"
            " addresses in stream.monitors, or state it with stream.servers_fsync = true"
        )
    return Checked(epoch, RELAXED if weak else DURABLE, tuple(weak), tuple(notes))


async def _check_account(connection: Connection) -> None:
    try:
        await insist(lambda: connection.api("INFO"), timeout_s=min(5, connection.patience_s))
    except (NoResponders, Unanswered) as error:
        raise Unreachable(
            "JetStream does not answer: the servers have no quorum, JetStream is not enabled, or"
            f" the account has no rights to $JS.API.> ({error})"
        ) from None
    except ApiError as error:
        raise ClusterError(f"JetStream refuses this account: {error}") from None


async def _check_servers(monitors: Sequence[str]) -> list[str]:
    """Return what is weak about the servers, from their own pages.

    Raises:
        Unreachable: the servers that answer are only just starting.
        ClusterError: none of the pages can be read, or the versions differ.
    """
    pages = await asyncio.gather(*map(_varz, monitors))
    known = [page for page in pages if page is not None]
    if not known:
        raise ClusterError(f"no monitoring page answers: {', '.join(monitors)} (stream.monitors)")
    versions = sorted({str(page.get("version")) for page in known})
    if len(versions) > 1:
        raise ClusterError(
            f"the servers run different versions, {' and '.join(versions)}: finish the upgrade"
        )
    configs = [(page, (page.get("jetstream") or {}).get("config") or {}) for page in known]
    # a server that is only just starting does not say yet
    configs = [(page, config) for page, config in configs if config.keys() & _SYNC_KEYS]
    if not configs:
        raise Unreachable(f"no server says yet how it runs JetStream: {', '.join(monitors)}")
    weak = []
    for page, config in configs:
        if not config.get("sync_always"):
            seconds = int(config.get("sync_interval", 0)) / 1e9
            weak.append(
                f"{page.get('server_name')} syncs every {seconds:g} s: an acknowledged reading is"
                " lost with its power; set 'sync_interval: always'"
            )
    return weak


async def _varz(address: str) -> dict[str, Any] | None:
    """Return a server's page with how it runs JetStream; None when it does not answer.

    A server that was asked for /varz while it started leaves that out of it for good; /jsz has it.
    """
    page = await _page(address, "varz")
    config = ((await _page(address, "jsz") or {}) if page is not None else {}).get("config")
    return {**page, "jetstream": {"config": config}} if page is not None and config else page


async def _page(address: str, name: str) -> dict[str, Any] | None:
    """Return a page, None without; no thread waits for a server that says nothing."""
    try:
        url = urlsplit(f"{address.rstrip('/')}/{name}")
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        async with asyncio.timeout(_PAGE_S):
            reader, writer = await asyncio.open_connection(
                url.hostname, port, ssl=url.scheme == "https" or None
            )
            try:
                # 1.0: one answer, whole, which ends with the connection
                writer.write(f"GET {url.path} HTTP/1.0\r\nHost: {url.netloc}\r\n\r\n".encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        if head.split(None, 2)[1] != b"200":
            return None
        found: dict[str, Any] = json.loads(body)
    except (OSError, LookupError, ValueError):
        return None
    return found
