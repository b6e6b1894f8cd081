from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mqtt.broker.net.sockets import SocketTransport
from mqtt.broker.seams import PublishRun
from mqtt.server_events import State

class Library(Protocol):
    VERSION: int

    def bind(
        self,
        transport: type,
        connection: type,
        machine: type,
        limits: type,
        route: type,
        run: type,
        connected: State,
        write: Any,
        /,
    ) -> None: ...
    def find(
        self,
        found: list[int | bytes],
        transports: dict[int, SocketTransport],
        generation: int,
        now_s: float,
        time_us: int,
        runs: list[PublishRun],
        /,
    ) -> list[int | bytes]: ...
    def settle(self, run: PublishRun, codes: int | Sequence[int], /) -> None: ...
    def leave_to(self, twin: Callable[[PublishRun, int | Sequence[int]], None], /) -> None: ...

VERSION: int
