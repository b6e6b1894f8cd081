"""Batches of readings: one context per connection at each end (docs/link-format.md section 3).

What both ends of a connection know is not repeated in a batch: gateway, epoch, time resolution,
the last seq of each lane, the last time, the mode. `Encoder` and `Decoder` keep that context in
step, because MQTT delivers in order and because any refusal drops it: the next batch that the
decoder takes must start a new one. An entry of the cloud's stream is a batch that starts its own
context and names its gateway, so it can be read alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import zstandard

from bridge.columnar import Columns, Limits, SourceTable, check_columns, pack, unpack, used_sources
from bridge.envelope import (
    SEQ_MAX,
    VERSION,
    Key,
    LinkLane,
    Mark,
    Mode,
    Tombstone,
    header_check,
    open_envelope,
    read_tombstones,
    read_uint,
    runs_of,
    seal_envelope,
    tombstone_rows,
    unfold_runs,
)
from bridge.errors import BatchError
from bridge.intervals import Range, ranges_of
from bridge.kernel import seq_runs, untrack
from bridge.readings import Readings

__all__ = [
    "Batch",
    "BodyDecoder",
    "BodyEncoder",
    "Decoder",
    "Encoder",
    "EntryEncoder",
    "OpenBatch",
    "columns_of",
    "compressor",
    "decode_entry",
    "decompressed",
    "decompressor",
    "encode_entry",
    "link_columns",
    "seal_entry",
    "times_us_of",
]

_ZSTD_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
EPOCH_MAX = (1 << 64) - 1
RESOLUTION_US_MAX = 60_000_000
_TIME_US_MAX = 1 << 62
DEFAULT_RESOLUTION_US = 1000


class BodyEncoder(Protocol):
    """An encoder of one mode's bodies, with its own context of this connection."""

    def reset(self) -> None:
        """Start a new context: forget everything learned from earlier batches."""
        ...

    def encode(self, columns: Columns, reference: int) -> bytes | None:
        """Return a body, or None, with the context unchanged, when mode 0 would be as small.

        Args:
            columns: One or more readings in seq order.
            reference: Last time of the context's previous batch, 0 at its start.
        """
        ...


class BodyDecoder(Protocol):
    """The decoder of one mode's bodies, in step with its encoder."""

    def reset(self) -> None:
        """Start a new context; also called after any error."""
        ...

    def decode(self, body: bytes, count: int, reference: int, limits: Limits) -> Columns:
        """Return exactly `count` readings in seq order.

        Raises:
            BatchError: the body cannot be what an encoder made, or breaks a limit.
        """
        ...


@dataclass(slots=True, frozen=True)
class Batch:
    """What one batch said."""

    gateway: str
    epoch: int
    lane: int
    historical: bool
    readings: Readings
    seq_ranges: tuple[Range, ...]  # inclusive, rising, not touching: those of `readings.seqs`
    tombstones: tuple[Tombstone, ...]
    assigned: int  # the highest seq the gateway says it has assigned in this epoch
    mode: int
    resolution_us: int  # of `readings.times_us`: all are multiples of it
    settled: int | None = None  # nothing up to here waits at the gateway; None: it does not say
    run: int = 0  # of the gateway that sends it, bridge/runs.py; 0: it does not say


@dataclass(slots=True)
class _Context:
    """What both ends know of one connection since its context began."""

    epoch: int
    resolution_us: int
    run: int = 0
    mode: int = int(Mode.COLUMNAR)
    last_time: int = 0
    assigned: int = 0
    lane_seqs: list[int] = field(default_factory=lambda: [0] * len(LinkLane))


class Encoder:
    """Encodes the batches of one connection, in the order they are sent.

    Args:
        gateway: The gateway's id, as in the topic.
        epoch: The journal's epoch.
        resolution_us: Times are cut down to multiples of this many microseconds.
        level: zstd level of mode 0.
        run: Who sends it, bridge/runs.py; 0: that is not said.
        bodies: Encoders of further modes, by mode; this encoder resets them.
    """

    __slots__ = (
        "_bodies",
        "_context",
        "_epoch",
        "_fresh",
        "_gateway",
        "_level",
        "_resolution_us",
        "_run",
        "_zstd",
    )

    def __init__(
        self,
        gateway: str,
        epoch: int,
        *,
        resolution_us: int = DEFAULT_RESOLUTION_US,
        level: int = 3,
        run: int = 0,
        bodies: Mapping[int, BodyEncoder] | None = None,
    ) -> None:
        self._gateway = gateway
        self._epoch = epoch
        self._run = run
        self._resolution_us = resolution_us
        self._bodies = dict(bodies or {})
        self._level = level
        self._zstd = compressor(level)
        self.reset()

    @property
    def level(self) -> int:
        """The zstd level of mode 0; each batch may have another."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        if level != self._level:
            self._level = level
            self._zstd = compressor(level)

    def reset(self) -> None:
        """Start a new context: on a new connection and after any refusal."""
        self._context = _Context(self._epoch, self._resolution_us)
        self._fresh = True
        for body in self._bodies.values():
            body.reset()

    @property
    def last_time(self) -> int:
        """The context's last time in units of the resolution: what bodies refer to."""
        return self._context.last_time

    def encode(
        self,
        readings: Readings,
        *,
        lane: int = LinkLane.LIVE,
        historical: bool = False,
        mode: int = Mode.COLUMNAR,
        body: bytes | None = None,
        assigned: int | None = None,
        tombstones: Sequence[Tombstone] = (),
        settled: int | None = None,
    ) -> bytes:
        """Return the next batch of the connection.

        Args:
            readings: Past the lane's last seq of this context; may be empty.
            lane: A `LinkLane`.
            historical: The readings waited through an outage.
            mode: The mode wanted; an encoder that gains nothing falls back to mode 0.
            body: These readings' body of that mode if it was made elsewhere, from their
                `link_columns` and this encoder's `last_time`.
            assigned: Highest seq assigned; None leaves what the cloud knows.
            tombstones: Losses to report.
            settled: Up to which seq, at most the highest assigned, no reading waits any more: the
                cloud has it, or was told that it is given up. None: nothing is said.

        Raises:
            ValueError: seqs not past the lane's last one, or a time the link cannot carry.
        """
        context = self._context
        ranges = ranges_of(readings.seqs)
        fields = self._open_fields(context)
        marks = int(Mark.HISTORICAL) if historical else 0
        columns = None
        if ranges:
            self._put_seqs(fields, ranges, context.lane_seqs[lane])
            columns = link_columns(readings, context.resolution_us)
            if body is None:
                mode, body = self._encode_body(columns, mode, context.last_time)
            fields[Key.COUNT] = len(readings)
            fields[Key.BODY] = body
            if mode != context.mode:
                fields[Key.MODE] = mode
        if lane != LinkLane.LIVE:
            fields[Key.LANE] = lane
        if marks:
            fields[Key.MARKS] = marks
        known = max(context.assigned, ranges[-1][1] if ranges else 0)
        assigned = max(known, assigned or 0)
        if assigned > known:
            fields[Key.ASSIGNED] = assigned - known
        if tombstones:
            fields[Key.TOMBSTONES] = tombstone_rows(tombstones)
        if settled is not None:
            fields[Key.SETTLED] = settled
        numbers = (context.epoch, lane, marks, context.resolution_us, assigned)
        check = header_check(self._gateway, numbers, ranges, tombstones)
        fields[Key.CHECK] = check if columns is None else check_columns(columns, check)
        self._fresh = False
        _advance(context, lane, ranges, columns, assigned, mode)
        return seal_envelope(fields)

    def _open_fields(self, context: _Context) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        if self._fresh:
            fields[Key.VERSION] = VERSION
            fields[Key.EPOCH] = context.epoch
            if context.resolution_us != DEFAULT_RESOLUTION_US:
                fields[Key.RESOLUTION] = context.resolution_us
            if self._run:
                fields[Key.RUN] = self._run
        return fields

    @staticmethod
    def _put_seqs(fields: dict[int, Any], ranges: Sequence[Range], cursor: int) -> None:
        if ranges[0][0] <= cursor:
            raise ValueError(f"seq {ranges[0][0]} was sent in this context before")
        runs = runs_of(ranges, cursor)
        if runs != [0]:
            fields[Key.SEQS] = runs

    def _encode_body(self, columns: Columns, mode: int, reference: int) -> tuple[int, bytes]:
        encoder = self._bodies.get(mode)
        if encoder is not None:
            body = encoder.encode(columns, reference)
            if body is not None:
                return mode, body
        content = pack(columns, reference)
        if mode == Mode.STORED:
            return Mode.STORED, content
        body = self._zstd.compress(content)
        if len(body) >= len(content):
            return Mode.STORED, content
        return Mode.COLUMNAR, body


@dataclass(slots=True, frozen=True)
class OpenBatch:
    """A batch whose envelope was read, and whose body was not."""

    context: _Context
    fields: dict[int, Any]
    gateway: str
    lane: int
    marks: int
    count: int
    mode: int
    ranges: tuple[Range, ...]
    tombstones: tuple[Tombstone, ...]

    @property
    def body(self) -> bytes:
        """The body; b"" in a batch without readings."""
        return self.fields.get(Key.BODY, b"")  # type: ignore[no-any-return]  # checked by `open`


class Decoder:
    """Decodes the batches of one connection, in the order they arrive.

    After a `BatchError`, and after `drop_context`, every batch is refused until one starts a new
    context. That keeps a gateway's order: nothing sent behind a refused batch is taken.

    Args:
        gateway: The gateway's id from the topic; None to take it from each batch (entries).
        limits: What is accepted.
        bodies: Decoders of further modes, by mode; this decoder resets them.
        dropped: Called whenever the context goes, for a mode whose context is elsewhere.
        zstd: A `decompressor` that several decoders of one thread share: it has no state between
            batches, and up to 95 KB. None: one of its own.
    """

    __slots__ = ("_bodies", "_context", "_dropped", "_gateway", "_limits", "_zstd")

    def __init__(
        self,
        gateway: str | None,
        *,
        limits: Limits | None = None,
        bodies: Mapping[int, BodyDecoder] | None = None,
        dropped: Callable[[], None] = lambda: None,
        zstd: zstandard.ZstdDecompressor | None = None,
    ) -> None:
        self._dropped = dropped
        self._gateway = gateway
        self._limits = limits or Limits()
        self._bodies = dict(bodies or {})
        self._zstd = zstd or decompressor()
        self._context: _Context | None = None

    def drop_context(self) -> None:
        """Forget the context: call it whenever a batch is refused for whatever reason."""
        self._context = None
        self._dropped()
        for body in self._bodies.values():
            body.reset()

    def decode(self, payload: bytes) -> Batch:
        """Return what a batch says.

        Raises:
            BatchError: the batch must be refused; the context is gone.
        """
        return self.finish(self.open(payload))

    def open(self, payload: bytes) -> OpenBatch:
        """Read a batch's envelope; `finish` goes on, before any other batch is opened.

        Raises:
            BatchError: the batch must be refused; the context is gone.
        """
        with self._refusing():
            return self._open(payload)

    def finish(self, batch: OpenBatch, columns: Columns | None = None) -> Batch:
        """Return what an open batch says.

        Args:
            batch: The one that was opened last.
            columns: Its body, where that was decoded elsewhere.

        Raises:
            BatchError: the batch must be refused; the context is gone.
        """
        with self._refusing():
            if batch.context is not self._context:
                raise BatchError("context", "a batch before this one was refused")
            return self._finish(batch, columns)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Have whatever goes wrong drop the context and be a BatchError."""
        try:
            yield
        except BatchError:
            self.drop_context()
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
            self.drop_context()
            raise BatchError("malformed", f"{type(error).__name__} in decoding") from error

    def _open(self, payload: bytes) -> OpenBatch:
        limits = self._limits
        fields = open_envelope(payload, limits.batch_bytes)
        context = self._take_context(fields)
        gateway = self._take_gateway(fields)
        lane = read_uint(fields, Key.LANE, LinkLane.LIVE, len(LinkLane) - 1)
        marks = read_uint(fields, Key.MARKS, 0, int(Mark.HISTORICAL))
        count = read_uint(fields, Key.COUNT, 0, limits.readings)
        mode = read_uint(fields, Key.MODE, context.mode, 0xFF)
        tombstones = read_tombstones(fields, limits.tombstones)
        ranges: tuple[Range, ...] = ()
        if count:
            ranges = unfold_runs(fields.get(Key.SEQS, [0]), count, context.lane_seqs[lane])
            if not isinstance(fields.get(Key.BODY), bytes):
                raise BatchError("malformed", "the body is missing or no byte string")
        elif fields.keys() & {Key.BODY, Key.SEQS, Key.MODE}:
            raise BatchError("malformed", "a body or seqs without a count")
        return OpenBatch(context, fields, gateway, lane, marks, count, mode, ranges, tombstones)

    def _finish(self, batch: OpenBatch, columns: Columns | None) -> Batch:
        limits, context, fields = self._limits, batch.context, batch.fields
        ranges, lane = batch.ranges, batch.lane
        check = read_uint(fields, Key.CHECK, None, 0xFFFFFFFF)
        if batch.count and columns is None:
            columns = self._decode_body(batch.body, batch.mode, batch.count, context.last_time)
        if columns is not None and len(columns) != batch.count:
            raise BatchError("bounds", f"{len(columns)} readings where {batch.count} belong")
        known = max(context.assigned, ranges[-1][1] if ranges else 0)
        assigned = known + read_uint(fields, Key.ASSIGNED, 0, SEQ_MAX - known)
        numbers = (context.epoch, lane, batch.marks, context.resolution_us, assigned)
        found = header_check(batch.gateway, numbers, ranges, batch.tombstones)
        if columns is not None:
            found = check_columns(columns, found, limits.content_bytes)
        if found != check:
            raise BatchError("check", "the content is not what was sent")
        settled = None
        if Key.SETTLED in fields:
            settled = read_uint(fields, Key.SETTLED, None, assigned)
        readings = _readings(columns, ranges, context.resolution_us)
        _advance(context, lane, ranges, columns, assigned, batch.mode)
        return Batch(
            batch.gateway,
            context.epoch,
            lane,
            bool(batch.marks),
            readings,
            ranges,
            batch.tombstones,
            assigned,
            batch.mode,
            context.resolution_us,
            settled,
            context.run,
        )

    def _take_context(self, fields: dict[int, Any]) -> _Context:
        if Key.VERSION not in fields:
            if self._context is None:
                raise BatchError("context", "the batch continues a context that is not here")
            if fields.keys() & {Key.EPOCH, Key.RESOLUTION, Key.RUN}:
                raise BatchError("malformed", "epoch, resolution or run without a new context")
            return self._context
        version = read_uint(fields, Key.VERSION, None, EPOCH_MAX)
        if version != VERSION:
            raise BatchError("version", f"version {version}, this end reads version {VERSION}")
        epoch = read_uint(fields, Key.EPOCH, None, EPOCH_MAX)
        resolution_us = read_uint(fields, Key.RESOLUTION, DEFAULT_RESOLUTION_US, RESOLUTION_US_MAX)
        if not resolution_us:
            raise BatchError("bounds", "resolution 0")
        self.drop_context()
        run = read_uint(fields, Key.RUN, 0, SEQ_MAX)
        self._context = _Context(epoch, resolution_us, run=run)
        return self._context

    def _take_gateway(self, fields: dict[int, Any]) -> str:
        named = fields.get(Key.GATEWAY, self._gateway)
        if not isinstance(named, str) or not 0 < len(named) <= 0xFFFF:
            raise BatchError("malformed", "the gateway is not named")
        if self._gateway not in (None, named):
            raise BatchError("malformed", "the batch names another gateway than its topic")
        return named

    def _decode_body(self, body: bytes, mode: int, count: int, reference: int) -> Columns:
        if mode == Mode.COLUMNAR:
            body = decompressed(self._zstd, body, self._limits.content_bytes)
        elif mode != Mode.STORED:
            decoder = self._bodies.get(mode)
            if decoder is None:
                raise BatchError("mode", f"mode {mode} is not known here")
            return decoder.decode(body, count, reference, self._limits)
        return unpack(body, count, reference, self._limits)


class EntryEncoder:
    """Encodes entries of the cloud's stream: batches that can each be read alone.

    Args:
        level: zstd level; entries are small and short-lived, so 1 by default.
    """

    __slots__ = ("_zstd",)

    def __init__(self, *, level: int = 1) -> None:
        self._zstd = compressor(level)

    def encode(
        self,
        gateway: str,
        epoch: int,
        readings: Readings,
        *,
        lane: int = LinkLane.LIVE,
        historical: bool = False,
        resolution_us: int = 1,
        runs: tuple[tuple[Range, ...], bytes] | None = None,
    ) -> bytes:
        """Return one entry of one or more readings.

        Args:
            gateway: The gateway's id.
            epoch: The journal's epoch.
            readings: In rising seq order, gaps allowed.
            lane: The lane they came by.
            historical: They waited through an outage.
            resolution_us: Times are cut down to multiples of it; the link has done so before.
            runs: Their seqs as `bridge.kernel.seq_runs` has them, where they are known.

        Raises:
            ValueError: no readings, or a time the format cannot carry.
        """
        if not len(readings):
            raise ValueError("an entry holds at least one reading")
        ranges, packed = runs or seq_runs(readings.seqs, 0, len(readings))
        columns = link_columns(readings, resolution_us)
        content = pack(columns, 0)
        body = self._zstd.compress(content)
        marks = int(Mark.HISTORICAL) if historical else 0
        check = header_check(
            gateway, (epoch, lane, marks, resolution_us, ranges[-1][1]), ranges, ()
        )
        fields: dict[int, Any] = {
            Key.VERSION: VERSION,
            Key.EPOCH: epoch,
            Key.GATEWAY: gateway,
            Key.COUNT: len(readings),
            Key.CHECK: check_columns(columns, check),
            Key.BODY: body,
        }
        return seal_entry(fields, content, lane, marks, resolution_us, seqs=packed)


def seal_entry(
    fields: dict[int, Any],
    content: bytes,
    lane: int,
    marks: int,
    resolution_us: int,
    *,
    seqs: bytes = b"",
) -> bytes:
    """Return the envelope of an entry: its fields, and those that are not what they are mostly.

    Args:
        fields: All but these; its body is compressed.
        content: The body as it was: taken where compressing gained nothing.
        lane: The lane its readings came by.
        marks: `Mark` flags.
        resolution_us: Times are multiples of it.
        seqs: The seqs as CBOR, where the entry is of one source.
    """
    if len(fields[Key.BODY]) >= len(content):
        fields |= {Key.MODE: Mode.STORED, Key.BODY: content}
    if lane != LinkLane.LIVE:
        fields[Key.LANE] = lane
    if resolution_us != DEFAULT_RESOLUTION_US:
        fields[Key.RESOLUTION] = resolution_us
    if marks:
        fields[Key.MARKS] = marks
    return seal_envelope(fields, seqs)


def encode_entry(gateway: str, epoch: int, readings: Readings, **options: Any) -> bytes:
    """Return one entry; `EntryEncoder` does the same many times over at less cost."""
    return EntryEncoder().encode(gateway, epoch, readings, **options)


def decode_entry(data: bytes, *, limits: Limits | None = None) -> Batch:
    """Return what an entry holds; `Decoder(None)` reads many at less cost.

    Raises:
        BatchError: the entry is damaged or foreign.
    """
    return Decoder(None, limits=limits).decode(data)


def compressor(level: int) -> zstandard.ZstdCompressor:
    """Return a compressor of frames without magic number, check or dictionary id."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        format=_ZSTD_FORMAT,
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def decompressor() -> zstandard.ZstdDecompressor:
    """Return a decompressor of such frames, for `decompressed`."""
    return zstandard.ZstdDecompressor(format=_ZSTD_FORMAT)


def decompressed(zstd: zstandard.ZstdDecompressor, body: bytes, bytes_max: int) -> bytes:
    """Return the content of a zstd frame whose stated size was within limits beforehand.

    Raises:
        BatchError: "bounds" when it states more than `bytes_max`, else "compression".
    """
    try:
        frame = zstandard.get_frame_parameters(body, format=_ZSTD_FORMAT)
        size = frame.content_size
        if size > bytes_max or frame.window_size > bytes_max:
            # an unknown size is the greatest number, so it is refused here as well
            raise BatchError("bounds", f"the body unpacks to more than {bytes_max} bytes")
        content = zstd.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BatchError("compression", str(error)) from error
    if len(content) != size:
        raise BatchError("compression", "the body is not of the size it states")
    return content


def link_columns(readings: Readings, resolution_us: int) -> Columns:
    """Return readings as a batch carries them: times in units, only the sources in use."""
    columns = columns_of(readings, resolution_us)
    columns.sources, columns.source_index = used_sources(columns.sources, columns.source_index)
    return columns


def columns_of(readings: Readings, resolution_us: int) -> Columns:
    """Return readings that have no unused sources as a batch carries them."""
    times = readings.times_us
    if resolution_us != 1:
        times = list(map(resolution_us.__rfloordiv__, times))
    return Columns(
        readings.sources,
        readings.source_index,
        times,
        readings.flags,
        readings.payloads,
        readings.properties,
    )


def times_us_of(columns: Columns, resolution_us: int) -> list[int]:
    """Return the times of columns in microseconds.

    Raises:
        BatchError: "bounds" when one is outside 62 bits.
    """
    times = list(map(resolution_us.__mul__, columns.times))
    if max(times) >= _TIME_US_MAX or min(times) <= -_TIME_US_MAX:
        raise BatchError("bounds", "a time outside 62 bits")
    return times


def _readings(columns: Columns | None, ranges: Sequence[Range], resolution_us: int) -> Readings:
    if columns is None:
        return Readings(range(0), [], [], [], [], [], [])
    times = times_us_of(columns, resolution_us)
    if len(ranges) == 1:
        seqs: Sequence[int] = range(ranges[0][0], ranges[0][1] + 1)
    else:
        seqs = list(chain.from_iterable(range(first, last + 1) for first, last in ranges))
    found = Readings(
        seqs,
        columns.sources if isinstance(columns.sources, SourceTable) else list(columns.sources),
        list(columns.source_index),
        times,
        list(columns.flags),
        list(columns.payloads),
        list(columns.properties),
    )
    untrack(found.source_index, times, found.flags, found.payloads, found.properties)
    return found


def _advance(
    context: _Context,
    lane: int,
    ranges: Sequence[Range],
    columns: Columns | None,
    assigned: int,
    mode: int,
) -> None:
    """Move a context past a batch; both ends do exactly this."""
    context.assigned = assigned
    if columns is not None:
        context.lane_seqs[lane] = ranges[-1][1]
        context.last_time = columns.times[-1]
        context.mode = mode
