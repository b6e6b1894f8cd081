"""A key-value bucket with what nats-py's lacks: time to live with compare-and-set, and a watch.

A bucket is a stream that keeps the last value of each key (cloud/cluster/layout.py). The
revision of a value is its sequence in that stream: it rises with every change of any key, so the
one at which a key was created is a fencing token.

Invariants: `create` and `update` change the key only if it is as the caller believes; a change
whose answer was lost is looked up before anything is said about it.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from cloud.cluster.connection import ApiError, Connection, NoResponders, Unanswered
from cloud.cluster.follower import Follower, Message

__all__ = ["Bucket", "BucketWatch", "Conflict", "Value", "is_deleted", "key_token"]

_PAUSE_S = 0.05
_TOMBSTONE_S = 3600.0
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_WRITE_ID = "Tidegate-Write"  # tells our own write from another's when the answer was lost
_WORD = re.compile(r"[A-Za-z0-9_/=-]+")
_CAS_LOST = (10071, 10164)


class Conflict(Exception):  # noqa: N818 - an outcome, like KeyError
    """The key is not as the caller believed: somebody else changed it."""


@dataclass(slots=True, frozen=True)
class Value:
    """A key's value."""

    key: str
    value: bytes
    revision: int


def key_token(text: str) -> str:
    """Return any text as one token of a key: itself if it can be, else a reversible code."""
    if _WORD.fullmatch(text) and not text.startswith("=") and "/" not in text:
        return text
    return "=" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


class Bucket:
    """One bucket.

    Args:
        connection: To the cluster.
        name: The bucket's, as `Layout.bucket` gives it.
        timeout_s: How long a change is tried.
    """

    def __init__(self, connection: Connection, name: str, *, timeout_s: float = 5.0) -> None:
        self.name = name
        self.stream = f"KV_{name}"
        self._connection = connection
        self._prefix = f"$KV.{name}."
        self._timeout_s = timeout_s

    @property
    def patience_s(self) -> float:
        """How long what a node needs at its start is tried."""
        return self._connection.patience_s

    async def get(self, key: str) -> Value | None:
        """Return the value as the bucket's leader has it; None when there is none.

        Raises:
            ClusterError.
        """
        found = await self._connection.last_message(self.stream, self._prefix + key)
        if found is None or is_deleted(_headers(found.get("hdrs", ""))):
            return None
        return Value(key, base64.b64decode(found.get("data") or ""), int(found["seq"]))

    async def create(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Set a key that has no value; return its revision.

        Args:
            key: Tokens joined by dots; see `key_token`.
            value: Any bytes.
            ttl_s: Seconds until it goes by itself, at least 1.

        Raises:
            Conflict: it has a value.
            ClusterError: it may have been set.
        """
        try:
            return await self.update(key, value, 0, ttl_s=ttl_s)
        except Conflict:
            found = await self._connection.last_message(self.stream, self._prefix + key)
            if found is None or not is_deleted(_headers(found.get("hdrs", ""))):
                raise
            return await self.update(key, value, int(found["seq"]), ttl_s=ttl_s)

    async def update(
        self, key: str, value: bytes, revision: int, *, ttl_s: float | None = None
    ) -> int:
        """Set a key that is at `revision` (0: never set); return its new revision.

        Raises:
            Conflict: it is at another.
            ClusterError: it may have been set.
        """
        headers = {_EXPECTED: str(revision), _WRITE_ID: secrets.token_hex(8)}
        if ttl_s is not None:
            headers["Nats-TTL"] = _ttl(ttl_s)
        return await self._change(key, value, headers)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Set a key whatever it is; return its revision."""
        headers = {} if ttl_s is None else {"Nats-TTL": _ttl(ttl_s)}
        return await self._change(key, value, headers)

    async def delete(self, key: str, *, revision: int | None = None) -> int:
        """Remove a key's value, if given only when it is at `revision`; return the new revision.

        What says so goes by itself after an hour, so that keys used once leave nothing behind.

        Raises:
            Conflict: it is at another revision.
            ClusterError: it may have been removed.
        """
        headers = {
            "KV-Operation": "DEL",
            "Nats-TTL": _ttl(_TOMBSTONE_S),
            _WRITE_ID: secrets.token_hex(8),
        }
        if revision is not None:
            headers[_EXPECTED] = str(revision)
        return await self._change(key, b"", headers)

    async def tokens_below(self, key: str) -> set[str]:
        """Return the tokens that follow `key` in keys that are longer; of values gone too.

        Raises:
            ClusterError.
        """
        prefix = f"{self._prefix}{key}."
        asked = {"subjects_filter": f"{prefix}>"}
        said = await self._connection.api(f"STREAM.INFO.{self.stream}", asked)
        subjects = said["state"].get("subjects") or {}
        return {subject[len(prefix) :].partition(".")[0] for subject in subjects}

    async def purge_below(self, key: str) -> None:
        """Remove every key that begins with the tokens of `key` and is longer, without a trace.

        Raises:
            ClusterError: some may be left.
        """
        asked = {"filter": f"{self._prefix}{key}.>"}
        await self._connection.api(f"STREAM.PURGE.{self.stream}", asked)

    async def _change(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        """Publish until it is known what became of it; `headers` decide when it may happen."""
        subject = self._prefix + key
        unsure = False  # an attempt before this one may have been stored
        cause: Unanswered | NoResponders | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        return (await self._connection.publish(subject, value, headers)).seq
                    except Unanswered as error:
                        unsure, cause = True, error
                    except NoResponders as error:
                        cause = error
                    except ApiError as error:
                        if error.err_code not in _CAS_LOST:
                            raise
                        if error.err_code == 10071:
                            return await self._own_or_conflict(subject, headers, unsure=unsure)
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            said = f": {cause}" if cause is not None else ""
            raise Unanswered(f"{self.name}: {key}: not in {self._timeout_s:g} s{said}") from None

    async def _own_or_conflict(self, subject: str, headers: dict[str, str], *, unsure: bool) -> int:
        if unsure:
            found = await self._connection.last_message(self.stream, subject)
            if found is not None:
                said = _headers(found.get("hdrs", ""))
                if said.get(_WRITE_ID) == headers[_WRITE_ID]:
                    return int(found["seq"])
        raise Conflict(f"{subject} is not at revision {headers[_EXPECTED]}")

    async def watch(
        self,
        changed: Callable[[str, Value | None], None],
        *,
        poll_s: float = 1.0,
    ) -> BucketWatch:
        """Keep a copy of the whole bucket in memory.

        Args:
            changed: Called with each key and its new value, None when it is gone, from the first
                load on; must not raise.
            poll_s: Most seconds until a change is seen that no message announced, such as the end
                of a time to live.

        Raises:
            ClusterError: the bucket cannot be read.
        """
        watch = BucketWatch(self, self._connection, changed, poll_s)
        await watch.start()
        return watch


class BucketWatch:
    """A bucket in memory, kept up to date.

    Attributes:
        values: By key, those changed last at the end.
    """

    def __init__(
        self,
        bucket: Bucket,
        connection: Connection,
        changed: Callable[[str, Value | None], None],
        poll_s: float,
    ) -> None:
        self.values: dict[str, Value] = {}
        self._prefix_length = len(f"$KV.{bucket.name}.")
        self._changed = changed
        self._follower = Follower(
            connection,
            bucket.stream,
            f"live.{bucket.stream}.>",
            self._take,
            poll_s=poll_s,
            begins=self._drop_purged,
        )

    @property
    def revision(self) -> int:
        """Everything up to this revision is in `values`."""
        return self._follower.next_seq - 1

    async def start(self) -> None:
        """Load everything there is."""
        await self._follower.start()

    async def reach(self, revision: int) -> None:
        """Return once `values` has everything up to `revision`."""
        await self._follower.reach(revision)

    async def stop(self) -> None:
        """End."""
        await self._follower.stop()

    def _take(self, message: Message) -> None:
        key = message.subject[self._prefix_length :]
        if is_deleted(message.headers):
            if self.values.pop(key, None) is not None:
                self._changed(key, None)
            return
        self.values.pop(key, None)
        value = self.values[key] = Value(key, message.data, message.seq)
        self._changed(key, value)

    def _drop_purged(self, first: int) -> None:
        """Forget what lay before `first`: a purge by hand leaves no marker that says so."""
        values = self.values.values()
        for value in list(takewhile(lambda one: one.revision < first, values)):
            del self.values[value.key]
            self._changed(value.key, None)


def is_deleted(headers: dict[str, str]) -> bool:
    """Return True when a bucket's message says that its key has no value any more."""
    return headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers


def _headers(encoded: str) -> dict[str, str]:
    """Return the headers of a message of the API, base64 of NATS/1.0 lines."""
    lines = base64.b64decode(encoded or "").decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _ttl(ttl_s: float) -> str:
    return f"{max(1, round(ttl_s))}s"
