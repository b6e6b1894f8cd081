"""One connection to a NATS cluster: requests, durable publishes, subscriptions; nats-py underneath.

Every request is answered, fails within its time, or fails when the line breaks: nothing waits for
ever, and nothing is sent for somebody who has given up because the line was down. nats-py's own
JetStream calls are not used; its traps (flush without end, swallowed cancellation, futures that
never time out, a connection closed for good after 60 tries, a hung server unnoticed for minutes)
are kept out by the settings here. docs/adr/0008-jetstream-engine.md.

Invariants:
- Bytes handed to nats-py and not yet answered stay below its buffer, so its `publish` never waits.
- While there is no line nothing is published: `Unanswered` comes at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import structlog

from cloud.cluster.append_times import AppendTimes
from runtime.logs import limited

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

__all__ = [
    "GONE",
    "PATIENCE_MIN_S",
    "Ack",
    "ApiError",
    "ClusterError",
    "Connection",
    "NatsAccess",
    "NoResponders",
    "Unanswered",
    "Unreachable",
    "servers_of",
]

log = structlog.get_logger(component="nats")

_BUFFER_BYTES = 16 << 20  # nats-py's; a publish that finds it full waits and swallows cancellation
_IN_FLIGHT_BYTES_MAX = 8 << 20
_CONNECT_S = 10.0
PATIENCE_MIN_S = 2.0  # one request, or one server's answer to a connection
_PATIENCE_S = 60.0  # elections come in rows
_LOG_EVERY_S = 5.0
GONE = 10059  # there is no such stream
_FULL_CODES = frozenset({10077, 10023, 10047, 10028})  # bytes, resources, storage, memory exceeded


# nats-py hands the servers' words on in lower case
_DENIED = re.compile(r'permissions violation for publish to "([^"]+)', re.IGNORECASE)


class ClusterError(Exception):
    """Something asked of the cluster that did not happen; `str()` is one line for an operator."""


class Unanswered(ClusterError):  # noqa: N818 - an outcome: it may have happened
    """No answer in time, or the line broke: the request may have been done or not."""


class NoResponders(ClusterError):  # noqa: N818 - a state of the cluster
    """Nobody serves the subject now, as a stream without a leader: it was not done."""


class Unreachable(ClusterError):  # noqa: N818 - a state of the cluster, which may pass
    """Nobody is there who could be asked."""


class ApiError(ClusterError):
    """An answer of JetStream that says no.

    Attributes:
        code: Like HTTP's.
        err_code: JetStream's own, 10071 for instance.
        description: Its words.
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description

    @property
    def is_full(self) -> bool:
        """True when a stream, or what it may use, has no room."""
        return self.err_code in _FULL_CODES


@dataclass(slots=True, frozen=True)
class NatsAccess:
    """How a node proves who it is; empty fields are not used."""

    user: str = ""
    password: str = ""
    token: str = ""
    credentials: str = ""  # a .creds file
    ca: str = ""  # certificates trusted, for tls:// addresses
    cert: str = ""
    key: str = ""


@dataclass(slots=True, frozen=True)
class Ack:
    """JetStream's word that a message is stored by a quorum."""

    stream: str
    seq: int
    duplicate: bool


def servers_of(url: str) -> list[str]:
    """Return the addresses of `nats://a,b:4222,c`.

    Raises:
        ValueError: no `nats://` or `tls://` address.
    """
    scheme, separator, rest = url.partition("://")
    hosts = [host.strip() for host in rest.split(",") if host.strip()]
    if not separator or scheme not in ("nats", "tls") or not hosts:
        raise ValueError(f"'{url}' is not nats://host[:port][,host[:port]...]")
    return [host if "://" in host else f"{scheme}://{host}" for host in hosts]


class Connection:
    """A connection that comes back by itself; made by `open`.

    Attributes:
        reconnects: How often it came back.
        patience_s: How long what a node needs at its start is tried while nobody answers.
        times: Of what was published into streams.
    """

    def __init__(self, client: Client, url: str, patience_s: float) -> None:
        self.reconnects = 0
        self.patience_s = patience_s
        self.times = AppendTimes()
        self._nc = client
        self._url = url
        self._inbox = f"_INBOX.{secrets.token_hex(12)}"
        self._next = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}  # subject, its answer
        self._many: dict[str, asyncio.Queue[Msg | None]] = {}
        self._bytes = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._on_line: list[Callable[[bool], None]] = []
        self._closing = False

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        name: str,
        access: NatsAccess = NatsAccess(),
        patience_s: float = _PATIENCE_S,
    ) -> Self:
        """Connect to one of the servers of `url`.

        Args:
            url: `nats://host[:port][,host[:port]...]`.
            name: Shown to the servers' operator.
            access: Who we are.
            patience_s: How long it may take, up to 10 s, and what is needed at a start after it.

        Raises:
            Unreachable: nobody answers there.
            ClusterError: nats-py is not installed, the address is wrong, or we are not let in.
        """
        try:
            from cloud.cluster.nats_client import NatsClient  # noqa: PLC0415 - an extra
        except ImportError:
            raise ClusterError(
                "nats-py is not installed: pip install 'tidegate[cluster]'"
            ) from None
        client = NatsClient()
        try:
            servers = servers_of(url)
        except ValueError as error:
            raise ClusterError(str(error)) from None
        connection = cls(client, url, max(patience_s, PATIENCE_MIN_S))
        connect_s = min(_CONNECT_S, connection.patience_s)
        refusals: list[str] = []
        options = connection._options(access, refusals)
        try:
            async with asyncio.timeout(connect_s):
                await client.connect(servers, name=name, **options)
                await connection._begin()
        except TimeoutError:
            await client.close()
            cause = refusals[-1] if refusals else f"no server answered in {connect_s:g} s"
            raise _not_connected(url, cause) from None
        except Exception as error:
            await client.close()
            raise _not_connected(url, refusals[-1] if refusals else _text(error)) from error
        return connection

    def _options(self, access: NatsAccess, refusals: list[str]) -> dict[str, Any]:
        async def error_cb(error: Exception) -> None:
            if not any(map(_no_entry, refusals)):  # what may follow it tells less
                refusals[:] = [_text(error)]
            transport = self._nc._transport  # noqa: SLF001 - an attempt that failed leaves it open
            if transport is not None and not self._nc.is_connected:
                transport.close()  # type: ignore[no-untyped-call]  # nats-py has no types there
            if denied := _DENIED.search(_text(error)):
                self._denied(denied[1])
            if not self._closing:
                limited(log, _text(error), _LOG_EVERY_S).warning("nats", error=_text(error))

        async def disconnected_cb() -> None:
            self._line_broke()

        async def reconnected_cb() -> None:
            self.reconnects += 1
            log.info("nats_reconnected", server=self.server)
            self._tell(up=True)

        async def closed_cb() -> None:
            self._line_broke()
            if not self._closing:
                log.error("nats_closed", url=self._url)

        async def lame_duck_cb() -> None:
            log.info("nats_server_leaves", server=self.server)
            await self._nc.force_reconnect()

        options: dict[str, Any] = {
            "error_cb": error_cb,
            "disconnected_cb": disconnected_cb,
            "reconnected_cb": reconnected_cb,
            "closed_cb": closed_cb,
            "lame_duck_mode_cb": lame_duck_cb,
            "connect_timeout": 2,
            "reconnect_time_wait": 0.2,
            "max_reconnect_attempts": -1,
            "ping_interval": 2,
            "max_outstanding_pings": 2,
            "pending_size": _BUFFER_BYTES,
            "flush_timeout": 5.0,
            "skip_subject_validation": True,  # subjects are ours
        }
        for key in ("user", "password", "token"):
            if getattr(access, key):
                options[key] = getattr(access, key)
        if access.credentials:
            options["user_credentials"] = access.credentials
        if access.ca or access.cert:
            options["tls"] = _tls(access)
        return options

    async def _begin(self) -> None:
        await self._nc.subscribe(f"{self._inbox}.*", cb=self._answered)
        await self._nc.flush(5)

    @property
    def connected(self) -> bool:
        """True while there is a line to a server."""
        return self._nc.is_connected and not self._closing

    @property
    def server(self) -> str:
        """Host and port of the server connected to now; "" without one."""
        url = self._nc.connected_url
        return url.netloc.rpartition("@")[2] if url is not None else ""

    @property
    def payload_bytes_max(self) -> int:
        """Most bytes of one message, headers included."""
        return int(self._nc.max_payload)

    def on_line(self, callback: Callable[[bool], None]) -> None:
        """Call `callback(up)` whenever the line is lost (False) or back (True)."""
        self._on_line.append(callback)

    # ---- one question, one answer ----------------------------------------------------------------

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 2.0,
    ) -> Msg:
        """Return the answer to a message.

        Raises:
            NoResponders, Unanswered.
            ApiError: this account may not send there.
        """
        await self._make_room(len(payload))
        token = self._token()
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (subject, future)
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(subject, payload, headers, token)
                answer = await future
        except TimeoutError:
            raise Unanswered(f"{subject}: no answer in {timeout_s:g} s") from None
        finally:
            del self._waiting[token]
            self._free(len(payload))
        if not answer.data and answer.headers and answer.headers.get("Status") == "503":
            raise NoResponders(f"{subject}: nobody serves it now")
        return answer

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 2.0,
    ) -> Ack:
        """Publish into a stream; stored by a quorum when this returns.

        Raises:
            NoResponders: no leader now: not stored, try again.
            Unanswered: perhaps stored.
            ApiError: refused, not stored.
        """
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        try:
            answer = await self.request(subject, payload, headers, timeout_s=timeout_s)
        except Unanswered:
            self.times.note(subject, loop.time() - sent_s)
            raise
        said = _json(answer.data)
        self.times.note(str(said["stream"]), loop.time() - sent_s)
        return Ack(str(said["stream"]), int(said["seq"]), bool(said.get("duplicate")))

    async def api(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 2.0
    ) -> dict[str, Any]:
        """Return the answer of a JetStream API call, such as `STREAM.INFO.name`.

        Raises:
            ApiError, NoResponders, Unanswered.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        answer = await self.request(f"$JS.API.{path}", payload, timeout_s=timeout_s)
        return _json(answer.data)

    # ---- one question, many answers --------------------------------------------------------------

    async def direct_get(
        self, stream: str, body: Mapping[str, Any], *, timeout_s: float = 2.0
    ) -> list[Msg]:
        """Return messages of a stream with `allow_direct`, from any of its replicas.

        A replica may lag, so the last ones may be absent; what is there is right.

        Args:
            stream: Its name.
            body: `seq` or `next_by_subj`, `batch`, `max_bytes` (not all of them).
            timeout_s: For each of the answers.

        Raises:
            NoResponders, Unanswered: the answers stopped short.
        """
        token = self._token()
        queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._many[token] = queue
        found: list[Msg] = []
        try:
            subject = f"$JS.API.DIRECT.GET.{stream}"
            await self._send(subject, json.dumps(body).encode(), None, token)
            while True:
                async with asyncio.timeout(timeout_s):
                    answer = await queue.get()
                if answer is None:
                    raise Unanswered(f"{subject}: the line broke")
                status = (answer.headers or {}).get("Status")
                if status is None:
                    found.append(answer)
                elif status in ("204", "404"):
                    return found
                elif status == "503":
                    raise NoResponders(f"{subject}: nobody serves it now")
                else:
                    raise ApiError(int(status), 0, f"{subject}: status {status}")
        except TimeoutError:
            raise Unanswered(f"{stream}: no more answers in {timeout_s:g} s") from None
        finally:
            del self._many[token]

    async def last_message(
        self, stream: str, subject: str, *, timeout_s: float = 2.0
    ) -> dict[str, Any] | None:
        """Return the last message of a subject as its stream's leader has it, or None.

        Its fields are JetStream's: `seq`, `data` and `hdrs` (base64), `time`.
        """
        try:
            said = await self.api(
                f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout_s=timeout_s
            )
        except ApiError as error:
            if error.err_code == 10037:
                return None
            raise
        message: dict[str, Any] = said["message"]
        return message

    # ---- core NATS -------------------------------------------------------------------------------

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Have `callback` awaited for each message of a subject; survives reconnects.

        Core NATS: messages of the time without a line are lost.
        """
        return await self._nc.subscribe(subject, queue=queue, cb=callback)

    async def send(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        reply: str = "",
    ) -> None:
        """Send a core message; nobody says whether it arrived.

        Raises:
            Unanswered: there is no line.
        """
        await self._make_room(len(payload))
        try:
            await self._publish(subject, payload, headers, reply)
        finally:
            self._free(len(payload))

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        """Return once the server has taken everything sent and every subscription made."""
        try:
            await self._nc.flush(timeout_s)  # type: ignore[arg-type]  # seconds, floats work
        except Exception as error:
            raise Unanswered(f"{self._url}: {_text(error)}") from error

    async def close(self) -> None:
        """End it; harmless when closed."""
        self._closing = True
        self._line_broke()
        await self._nc.close()

    # ---- helpers ---------------------------------------------------------------------------------

    def _token(self) -> str:
        self._next += 1
        return f"{self._next:x}"

    async def _send(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None, token: str
    ) -> None:
        await self._publish(subject, payload, headers, f"{self._inbox}.{token}")

    async def _publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None, reply: str
    ) -> None:
        if not self.connected:
            raise Unanswered(f"{self._url}: no connection")
        try:
            await self._nc.publish(
                subject, payload, reply, dict(headers) if headers is not None else None
            )
        except Exception as error:  # a transport torn down raises whatever it likes
            raise Unanswered(f"{subject}: {_text(error)}") from error

    async def _answered(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if token in self._waiting:
            _, future = self._waiting[token]
            if not future.done():
                future.set_result(message)
            return
        queue = self._many.get(token)
        if queue is not None:
            queue.put_nowait(message)

    def _denied(self, subject: str) -> None:
        """End what waits for an answer from where this account may not send."""
        for asked, future in self._waiting.values():
            if asked.lower() == subject.lower() and not future.done():
                future.set_exception(
                    ApiError(403, 403, f"this account has no rights to publish to {asked}")
                )

    def _line_broke(self) -> None:
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(Unanswered(f"{self._url}: the line broke"))
        for queue in self._many.values():
            queue.put_nowait(None)
        self._tell(up=False)

    def _tell(self, *, up: bool) -> None:
        for callback in self._on_line:
            callback(up)

    async def _make_room(self, size: int) -> None:
        while self._bytes and self._bytes + size > _IN_FLIGHT_BYTES_MAX:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(future)
            await future
        self._bytes += size

    def _free(self, size: int) -> None:
        self._bytes -= size
        while self._room:  # each looks again for itself
            future = self._room.popleft()
            if not future.done():
                future.set_result(None)


def _not_connected(url: str, cause: str) -> ClusterError:
    return (ClusterError if _no_entry(cause) else Unreachable)(f"{url}: {cause}")


def _no_entry(cause: str) -> bool:
    """Return True when a server said that we are not let in."""
    return "uthorization" in cause


def _json(data: bytes) -> dict[str, Any]:
    """Return JetStream's answer.

    Raises:
        ApiError: it says no, or is no JSON.
    """
    try:
        said: dict[str, Any] = json.loads(data)
    except ValueError:
        raise ApiError(500, 0, f"not an answer of JetStream: {data[:80]!r}") from None
    error = said.get("error")
    if error is not None:
        raise ApiError(
            int(error.get("code", 0)),
            int(error.get("err_code", 0)),
            str(error.get("description", "")),
        )
    return said


def _tls(access: NatsAccess) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=access.ca or None)
    if access.cert:
        context.load_cert_chain(Path(access.cert), Path(access.key) if access.key else None)
    return context


def _text(error: Exception) -> str:
    text = str(error).removeprefix("nats: ").strip().strip("'\"")
    return text or type(error).__name__
