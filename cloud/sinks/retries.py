"""The entry each partition of a sink cannot get past for now, and when it is tried again.

Such an entry holds up its own partition only. It is tried so many times, with pauses that double;
then it is to be set aside. One that a newer version may have written is tried for `_NEWER_S` at
least: the cluster was raised to that version a moment ago, and a node that knows it takes the
partition over (cloud/cluster/versions.py). Times are the loop's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cloud.config import SinksConfig
from cloud.stream.contract import Entry

__all__ = ["Retries"]

_NEWER_S = 60.0  # a node that is too old finds out in a second or two


@dataclass(slots=True)
class _Failure:
    position: int
    tries: int
    retry_at_s: float
    cause: str
    since_s: float  # of the first try


class Retries:
    """What of one sink failed and will be tried again.

    Args:
        config: How often, and with which pauses.
    """

    __slots__ = ("_config", "_failures")

    def __init__(self, config: SinksConfig) -> None:
        self._config = config
        self._failures: dict[int, _Failure] = {}  # by partition

    @property
    def partitions(self) -> Collection[int]:
        """Those that are held up."""
        return self._failures.keys()

    @property
    def causes(self) -> Iterable[str]:
        """Why each of them is."""
        return [failure.cause for failure in self._failures.values()]

    def pause_s(self, tries: int) -> float:
        """Return how long to pause after so many tries that failed, but for the last."""
        pause_s: float = self._config.retry_s * 2 ** min(tries, 20)
        return min(pause_s, self._config.retry_max_s)

    def due(self, now_s: float) -> list[int]:
        """Return the partitions whose pauses are over."""
        return [p for p, failure in self._failures.items() if failure.retry_at_s <= now_s]

    def next_s(self) -> float | None:
        """Return when the first pause is over; None while nothing is held up."""
        return min((failure.retry_at_s for failure in self._failures.values()), default=None)

    def failed(self, entry: Entry, cause: str, now_s: float, *, newer: bool = False) -> int:
        """Count a try of an entry that failed; return its tries so far.

        It is tried again after a pause, unless it has had its tries: `again` tells.

        Args:
            entry: Which.
            cause: Why, as a line.
            now_s: When.
            newer: A newer version may have written it.
        """
        before = self._failures.get(entry.partition)
        tries, since_s = 1, now_s
        if before and before.position == entry.position:
            tries, since_s = before.tries + 1, before.since_s
        if tries < self._config.tries_max or (newer and now_s - since_s < _NEWER_S):
            self._failures[entry.partition] = _Failure(
                entry.position, tries, now_s + self.pause_s(tries - 1), cause, since_s
            )
        return tries

    def again(self, entry: Entry, tries: int) -> bool:
        """Return whether an entry is tried again after so many tries."""
        failure = self._failures.get(entry.partition)
        return failure is not None and (failure.position, failure.tries) == (entry.position, tries)

    def postpone(self, partition: int, cause: str, now_s: float) -> None:
        """Try later, and count nothing: the entry could not be read this time."""
        failure = self._failures[partition]
        failure.retry_at_s = now_s + self.pause_s(failure.tries)
        failure.cause = cause

    def in_turn(self, entry: Entry) -> bool:
        """Return False for an entry behind the one that holds its partition up."""
        failure = self._failures.get(entry.partition)
        return failure is None or entry.position <= failure.position

    def passed(self, ends: Mapping[int, int]) -> None:
        """Note how far the sink has got, by partition."""
        for partition, end in ends.items():
            failure = self._failures.get(partition)
            if failure is not None and failure.position <= end:
                del self._failures[partition]

    def forget(self, partition: int) -> None:
        """Hold a partition up no longer."""
        self._failures.pop(partition, None)
