"""What a method of enhanced authentication is to the broker (MQTT 5.0 section 4.12).

A method begins an exchange for each client; the exchange takes what the client sends and returns
what to answer, until it is done or refuses. SCRAM-SHA-256 (`mqtt.broker.access.scram`) is built in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mqtt.broker.seams import ClientInfo
from mqtt.reason_codes import ReasonCode

__all__ = ["AuthMethod", "AuthRefusedError", "AuthStep", "Exchange"]


class AuthRefusedError(Exception):
    """The client is not who it says.

    Args:
        detail: For the log, never for the client.
        reason_code: For the client.
    """

    def __init__(self, detail: str, reason_code: int = ReasonCode.NOT_AUTHORIZED) -> None:
        super().__init__(detail)
        self.reason_code = int(reason_code)


@dataclass(slots=True, frozen=True)
class AuthStep:
    """What an exchange answers."""

    data: bytes = b""
    done: bool = False
    username: str | None = None  # whom it has proven to be, once done


class Exchange(Protocol):
    """One client's way through a method."""

    async def step(self, data: bytes) -> AuthStep:
        """Take the client's data (empty when it sent none); raises AuthRefusedError."""
        ...


class AuthMethod(Protocol):
    """A method by its name."""

    name: str

    def begin(self, client: ClientInfo) -> Exchange:
        """Return a new exchange."""
        ...
