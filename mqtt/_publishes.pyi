from typing import Any, Protocol

from mqtt.server_messages import Message

class Library(Protocol):
    VERSION: int

    def publishes(
        self,
        template: Message,
        data: bytes,
        pos: int,
        version: int,
        size_max: int,
        count_max: int,
        /,
    ) -> list[Any]: ...

VERSION: int
