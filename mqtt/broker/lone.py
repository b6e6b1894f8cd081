"""Lone publishes: of what a turn of the plain sockets has read, all that nothing is new about.

A device that waits for each answer sends one PUBLISH a read, with the header and topic of its last.
Where such a publish is captured and has no subscriber, there is nothing to be decided for it alone:
those of a turn are made runs and offered to the capture together, before what else was read. To
each client the order is that of the wire; between clients MQTT has none. Everything else goes its
usual way, `Connection.data_received`, and so does what nobody looks at here: TLS, WebSocket.
benchmarks/fan_in.py pays for it; docs/adr/0013-own-sockets.md has the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqtt.broker.connection import Connection
from mqtt.broker.lone_calls import native
from mqtt.broker.net.sockets import SocketTransport
from mqtt.broker.seams import Capture, PublishRun
from mqtt.server import ServerConnection
from mqtt.server_events import CONNECTED, ServerLimits
from mqtt.server_routes import Route

if TYPE_CHECKING:
    from mqtt.broker.core import Core

__all__ = ["LonePublishes", "find"]


def _find(
    found: list[int | bytes],
    transports: dict[int, SocketTransport],
    generation: int,
    now_s: float,
    time_us: int,
    runs: list[PublishRun],
) -> list[int | bytes]:
    """Make runs of the reads that are one plain publish of QoS 1.

    Args:
        found: What was read, as `socket_calls.receive` returns it.
        transports: Of whom, by descriptor.
        generation: Of the routes whose receivers are current.
        now_s: Monotonic time, of what was received.
        time_us: Wall clock, of the runs.
        runs: The runs are appended; each publish counts as unanswered then.

    Returns:
        The rest of `found`, in order.
    """
    rest: list[int | bytes] = []
    pairs = iter(found)
    for descriptor, what in zip(pairs, pairs, strict=True):
        run = None
        if isinstance(what, bytes):
            transport = transports[descriptor]  # type: ignore[index] # they take turns
            connection = transport.protocol
            if transport.takes_data and isinstance(connection, Connection):
                run = connection.lone_run(what, generation, now_s)
        if run is None:
            rest += (descriptor, what)
        else:
            run.time_us = time_us
            runs.append(run)
    return rest


class LonePublishes:
    """Takes the lone publishes out of what a turn has read.

    Args:
        core: Of the broker.
        capture: Whom they are for.
    """

    __slots__ = ("_capture", "_core")

    def __init__(self, core: Core, capture: Capture) -> None:
        self._core = core
        self._capture = capture

    def __call__(
        self, found: list[int | bytes], transports: dict[int, SocketTransport]
    ) -> list[int | bytes]:
        """Take them; return the rest."""
        core = self._core
        runs: list[PublishRun] = []
        generation = core.router.routes.generation
        rest = find(found, transports, generation, core.now_s, core.wall_us(), runs)
        if runs:
            self._offer(runs)
        return rest

    def _offer(self, runs: list[PublishRun]) -> None:
        core = self._core
        capture = self._capture
        take = capture.take
        refused: list[tuple[PublishRun, int]] = []
        size = 0
        taken = 0
        for run in runs:
            size += len(run.frames)
            try:
                refusal = take(run)
            except Exception as error:  # noqa: BLE001 - a callback's root: the others go on
                core.sockets.broke(run.token[0].owner.transport, error)
                continue
            if refusal:
                refused.append((run, refusal))
            else:
                taken += 1
        stats = core.stats
        stats.bytes_received += size
        stats.captured += taken
        stats.messages_received[1] += taken
        for run, refusal in refused:
            run.token[0].owner.refused(run, refusal)
        if capture.saturated():
            for run in runs:
                run.token[0].owner.wait_for_capture()


find = native.find if native else _find
if native:
    native.bind(
        SocketTransport,
        Connection,
        ServerConnection,
        ServerLimits,
        Route,
        PublishRun,
        CONNECTED,
        SocketTransport.write,
    )
