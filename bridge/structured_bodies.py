"""The structured mode on the link: its limits there, and bodies only where they pay.

Both ends import this module only once they have something structured in hand: it brings the
codec's code and tables with it.

Invariant: over any run of batches the bodies are at most 1% larger than those of mode 0, but for
what a context costs to learn, which is bounded by `_LEARNING` of one batch in `_PAUSE_MIN`.

A kind of payload that is dear to encode (`_DEAR_US`) and gains little by it (`_DEAR_PAYS`) goes in
mode 0 as well, while the link has bytes to spare. The first batch sent when it no longer has is
structured again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import zstandard

from bridge.batch import compressor
from bridge.columnar import Columns, pack
from bridge.envelope import Mode
from bridge.structured import SnapshotError, StructuredEncoder, StructuredLimits
from bridge.structured.limits import KEEP_BODIES_MAX

__all__ = ["LINK_LIMITS", "BodyChoice"]

# What a context on the link may hold, at both ends: an encoder's takes 40 MB of a process at the
# very most, a decoder's never more than `held_bytes`, and the second one half of that.
LINK_LIMITS = StructuredLimits(
    sources=16_384,
    columns=8_192,
    cells=262_144,
    batch_readings=16_384,
    batch_bytes=16 << 20,
)

_OBVIOUS = 8  # a body of less than 1/8 of the content pays: not compared
_LEARNING = 0.5  # of a batch may be lost before a context has learned
_PAYS = 0.97  # less than 3% is not worth the CPU
_DEAR_US = 40.0  # a reading: what takes more CPU to encode
_DEAR_PAYS = 0.85  # is worth it for 15% or more, unless bytes are what the link lacks
_WINDOW = 16  # batches over which it is judged
_PAUSE_MIN = 64  # batches in mode 0 before it is tried again
_PAUSE_MAX = 4096
_SPENT_WEIGHT = 0.25  # of the last batch in the average of what encoding costs
_KEEP_FIRST = 2  # bodies of a context until its first snapshot; then each time twice as many,
_KEEP_EVERY = KEEP_BODIES_MAX  # up to so many between two: each takes some ms at both ends


class BodyChoice:
    """Encodes bodies of one connection as structured, or in mode 0 while that does as well.

    Args:
        resolution_us: The link's time unit.
        level: zstd level of mode 0.
        encoder: Another structured encoder than a new one.
        keeps: Ask for snapshots of the context now and then, each in `kept`.
        cpu_s: Returns the CPU time spent so far; None: what encoding costs is not looked at.

    Attributes:
        kept: Name and bytes of the snapshot the last body asked the other end to keep; None if it
            asked for none.
    """

    __slots__ = (
        "_bodies",
        "_cpu_s",
        "_dear",
        "_encoder",
        "_excess",
        "_judged",
        "_keep_at",
        "_keeps",
        "_pause",
        "_skip",
        "_spent_us",
        "_sums",
        "_zstd",
        "kept",
    )

    def __init__(
        self,
        resolution_us: int,
        *,
        level: int = 3,
        encoder: StructuredEncoder | None = None,
        keeps: bool = False,
        cpu_s: Callable[[], float] | None = None,
    ) -> None:
        self._keeps = keeps
        self._cpu_s = cpu_s or (lambda: 0.0)
        self._dear = False  # the batches skipped would be smaller structured, and cost too much
        self._bodies = 0  # of this context
        self._keep_at = _KEEP_FIRST
        self.kept: tuple[bytes, bytes] | None = None
        self._encoder = encoder or StructuredEncoder(LINK_LIMITS, resolution_us=resolution_us)
        self._zstd: zstandard.ZstdCompressor = compressor(level)
        self._pause = _PAUSE_MIN
        self._skip = 0  # batches still to go in mode 0
        self._judge_anew()

    def _judge_anew(self) -> None:
        self._judged = 0
        self._excess = 0.0  # bytes over mode 0, in batches of mode 0
        self._sums = [0, 0]  # bytes of compared bodies: structured, mode 0
        self._spent_us = 0.0  # a reading: moving average

    def reset(self, snapshot: tuple[bytes, bytes] | None = None) -> None:
        """Start a new context: nothing that was encoded so far counts at the other end.

        Args:
            snapshot: What the other end kept, to go on from; ignored if it is damaged.
        """
        self._encoder.reset()
        if snapshot is not None:
            with contextlib.suppress(SnapshotError):
                self._encoder.restore(*snapshot)
        self._bodies = 0
        self._keep_at = _KEEP_FIRST
        self._judge_anew()

    def encode(
        self,
        columns: Columns,
        reference: int,
        content: bytes | None = None,
        *,
        may_keep: bool = True,
        spare: bool = False,
    ) -> tuple[int, bytes]:
        """Return the mode and the body of a batch of one or more readings.

        Args:
            columns: The readings.
            reference: The connection's last time.
            content: `pack(columns, reference)` where it is at hand.
            may_keep: No snapshot asked for before is still to be acknowledged: the other end keeps
                two, of which one must be the last acknowledged.
            spare: The link has bytes to spare: some may be given for CPU.
        """
        if content is None:
            content = pack(columns, reference)
        self.kept = None
        if self._dear and not spare:
            self._dear, self._skip = False, 0
        if self._skip:
            self._skip -= 1
            return self._columnar(content)
        keep = self._keeps and may_keep and self._bodies + 1 >= self._keep_at
        began_s = self._cpu_s()
        body = self._encoder.encode(columns, reference, keep=keep)
        if body is None:
            return self._columnar(content)
        took_us = (self._cpu_s() - began_s) * 1e6 / len(columns)
        self._spent_us += (took_us - self._spent_us) * _SPENT_WEIGHT
        if len(body) * _OBVIOUS < len(content):
            self._pause = _PAUSE_MIN
            return self._structured(body, keep=keep)
        plain = self._columnar(content)
        if self._pays(len(body), len(plain[1]), spare=spare):
            return self._structured(body, keep=keep)
        self._skip, self._pause = self._pause, min(_PAUSE_MAX, self._pause * 4)
        self.reset()  # this body is never sent
        return plain

    def _structured(self, body: bytes, *, keep: bool) -> tuple[int, bytes]:
        self._bodies += 1
        if keep:
            self.kept = self._encoder.snapshot()
            self._keep_at = self._bodies + min(self._bodies, _KEEP_EVERY)
        return Mode.STRUCTURED, body

    def _pays(self, size: int, plain: int, *, spare: bool) -> bool:
        self._excess = max(0.0, self._excess + (size - plain * 1.01) / plain)
        if self._excess > _LEARNING:
            return False
        self._judged += 1
        if self._judged <= _WINDOW // 2:  # it learns
            return True
        sums = self._sums
        sums[0] += size
        sums[1] += plain
        if self._judged < _WINDOW + _WINDOW // 2:
            return True
        pays = sums[0] < sums[1] * _PAYS
        if pays and spare and self._spent_us > _DEAR_US:
            pays = sums[0] < sums[1] * _DEAR_PAYS
            self._dear = not pays
        self._judged = _WINDOW // 2
        self._sums = [0, 0]
        return pays

    def _columnar(self, content: bytes) -> tuple[int, bytes]:
        body = self._zstd.compress(content)
        if len(body) >= len(content):
            return Mode.STORED, content
        return Mode.COLUMNAR, body
