from collections.abc import Sequence
from typing import Protocol, TypeVar

from mqtt.packets import Subscription

_T = TypeVar("_T")

class Library(Protocol):
    VERSION: int

    def subscriptions(
        self, kind: type[Subscription], body: bytes, pos: int, count_max: int, /
    ) -> tuple[list[Subscription], int]: ...
    def are_within(
        self, topic_filters: list[str], slashes_max: int, characters_max: int, /
    ) -> bool: ...
    def first_levels(self, topic_filters: list[str], /) -> set[str]: ...
    def entries(
        self,
        kind: type[_T],
        session: object,
        subscriptions: Sequence[Subscription],
        identifiers: bytes,
        /,
    ) -> list[_T]: ...
    def add_filters(
        self,
        values: object,
        root: object,
        key: object,
        topic_filters: list[str],
        given: list[object],
        /,
    ) -> int: ...

VERSION: int
