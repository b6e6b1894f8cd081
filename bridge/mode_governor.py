"""Which of two modes drains faster, found by trying: columnar makes way for nothing but bytes.

The structured mode takes the fewest bytes and the most CPU, at both ends. On a slow link it is the
faster way as well; on a fast one the encoder, the decoder or a busy machine may be what a drain
waits for, and neither end can tell which: acknowledgements come late from all of them alike. So
while much waits, the readings acknowledged in some time are counted in the mode in use, then in the
other one. Columnar is worth its bytes only if it is `GAIN` times as fast. What was found holds for
a while, which doubles each time the same is found again. While little waits it is structured.

Invariant: of a stretch between two trials, which is `PAUSE_MIN_S` and soon more, at most a sample
goes in the worse mode: about 1.3 s, and `_SAMPLE_BATCHES` batches where those take longer.
"""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["GAIN", "PAUSE_MAX_S", "PAUSE_MIN_S", "WAITING_MIN", "ModeGovernor"]

WAITING_MIN = 5000  # readings: with fewer it is not worth a trial
BEHIND_S = 2.0  # nor where all that waits is gone so soon
GAIN = 1.4  # times as fast must columnar be
PAUSE_MIN_S = 10.0  # until the next trial,
PAUSE_MAX_S = 300.0  # twice as long each time nothing has changed
_SETTLE_S = 0.3  # after a change of modes, and until all that was in flight is answered
_SAMPLE_S = 1.0
_SAMPLE_BATCHES = 8
_SAMPLE_MAX_S = 10.0  # with fewer batches


class _Phase(Enum):
    CALM = auto()  # nothing is measured
    OWN = auto()  # the mode in use is
    OTHER = auto()  # the other one is used, and measured


class ModeGovernor:
    """Says whether the next batch may be structured.

    Attributes:
        switches: How often columnar was found to be worth its bytes.
    """

    __slots__ = (
        "_batches",
        "_columnar",
        "_flush",
        "_much",
        "_next_s",
        "_own_rate",
        "_pause_s",
        "_phase",
        "_readings",
        "_settled_s",
        "_since_s",
        "_waiting",
        "switches",
    )

    def __init__(self) -> None:
        self.switches = 0
        self._columnar = False  # found to be the better one for much
        self._much = False  # waits
        self._waiting = 0
        self._next_s = 0.0  # when something may be measured again
        self._pause_s = PAUSE_MIN_S
        self._own_rate = 0.0  # readings a second
        self._phase = _Phase.CALM
        self._flush = 0  # batches still to be answered before it counts,
        self._settled_s = 0.0  # and at least until then
        self._since_s = 0.0  # the sample,
        self._readings = 0
        self._batches = 0

    @property
    def much(self) -> bool:
        """True while so much waits that the link, or either end, is what it waits for."""
        return self._much

    def structured(self, now_s: float, waiting: int, in_flight: int) -> bool:
        """Return True when the next batch may be structured.

        Args:
            now_s: Now.
            waiting: Readings that wait to be sent, those of the batch included.
            in_flight: Batches that are not answered yet.
        """
        self._waiting = waiting
        if waiting < WAITING_MIN // 4:
            self._much, self._phase = False, _Phase.CALM
        elif waiting >= WAITING_MIN:
            self._much = True
        if not self._much:
            return True
        if self._phase is _Phase.CALM:
            if now_s >= self._next_s:
                self._begin(_Phase.OWN, now_s, in_flight)
        elif self._done(now_s):
            self._judge(now_s, in_flight)
        return self._columnar is (self._phase is _Phase.OTHER)

    def answered(self, now_s: float, readings: int) -> None:
        """Note a batch that was acknowledged.

        Args:
            now_s: Now.
            readings: How many it held.
        """
        if self._phase is _Phase.CALM:
            return
        if self._flush or now_s < self._settled_s:
            self._flush = max(0, self._flush - 1)
            self._since_s = now_s
            return
        self._readings += readings
        self._batches += 1

    def restart(self) -> None:
        """Begin anew with the connection or its context: it may be another link."""
        self._columnar = False
        self._phase = _Phase.CALM
        self._next_s, self._pause_s = 0.0, PAUSE_MIN_S

    def _begin(self, phase: _Phase, now_s: float, in_flight: int) -> None:
        self._phase = phase
        self._flush = in_flight
        self._settled_s = now_s + _SETTLE_S
        self._since_s = now_s
        self._readings = 0
        self._batches = 0

    def _done(self, now_s: float) -> bool:
        if self._flush or not self._batches:
            return False
        took_s = now_s - self._since_s
        return took_s >= _SAMPLE_S and (self._batches >= _SAMPLE_BATCHES or took_s >= _SAMPLE_MAX_S)

    def _judge(self, now_s: float, in_flight: int) -> None:
        rate = self._readings / (now_s - self._since_s)
        if self._phase is _Phase.OWN:
            self._own_rate = rate
            if self._waiting > rate * BEHIND_S:
                self._begin(_Phase.OTHER, now_s, in_flight)
            else:
                self._phase = _Phase.CALM
            return
        structured, columnar = (rate, self._own_rate) if self._columnar else (self._own_rate, rate)
        found = columnar > structured * GAIN
        self._pause_s = PAUSE_MIN_S if found != self._columnar else self._pause_s * 2
        self._pause_s = min(PAUSE_MAX_S, self._pause_s)
        self.switches += found and not self._columnar
        self._columnar = found
        self._next_s = now_s + self._pause_s
        self._phase = _Phase.CALM
