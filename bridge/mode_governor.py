"""Which of two modes drains faster, found by trying: columnar makes way for nothing but bytes.

The structured mode takes the fewest bytes and the most CPU, at both ends. On a slow link it is the
faster way as well; on a fast one the encoder, the decoder or a busy machine may be what a drain
waits for, and neither end can tell which: acknowledgements come late from all of them alike. So
while much waits, the readings acknowledged in some time are counted in the mode in use, then in the
other one. Columnar is worth its bytes only if it is `GAIN` times as fast. What was found holds for
a while, which doubles each time the same is found again. While little waits it is structured.

One thing this end knows by itself: structured is no faster than its batches are made. A few of them
are enough to see that (a probe), and where columnar is `GAIN` times as fast as that there is no
need to drain structured for a second to find out. Where most drains begin, and many end, nothing
is known but what was acknowledged in mode 0 while the encoder's process came up: then a probe says
which sample to take first.

Invariant: of a stretch between two trials, which is `PAUSE_MIN_S` and soon more, at most a probe
and a sample go in the worse mode: `_PROBE_BATCHES`, and about 1.3 s, or `_SAMPLE_BATCHES` batches
where those take longer.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

__all__ = ["GAIN", "PAUSE_MAX_S", "PAUSE_MIN_S", "WAITING_MIN", "ModeGovernor"]

WAITING_MIN = 5000  # readings: with fewer it is not worth a trial
BEHIND_S = 2.0  # nor where all that waits is gone so soon,
BEHIND_MADE_S = 0.5  # or is made into structured batches so soon
GAIN = 1.4  # times as fast must columnar be
PAUSE_MIN_S = 10.0  # until the next trial,
PAUSE_MAX_S = 300.0  # twice as long each time nothing has changed
_SETTLE_S = 0.3  # after a change of modes, and until all that was in flight is answered
_SAMPLE_S = 1.0
_SAMPLE_BATCHES = 8
_SAMPLE_MAX_S = 10.0  # with fewer batches
_PROBE_BATCHES = 12  # the first of a context take longer, so
_MADE_BATCHES = 8  # the last ones count
_SEEN_BATCHES = 64  # of mode 0, before anything was measured
_SEEN_PART = 0.6  # of the rate at which structured ones are made: then columnar is tried first


class _Phase(Enum):
    CALM = auto()  # nothing is measured
    PROBE = auto()  # how fast structured batches are made
    STRUCTURED = auto()  # what is acknowledged, in that mode
    COLUMNAR = auto()  # in the other one


# what costs nothing first: the mode in use
_FIRST_TRIAL = (_Phase.PROBE, _Phase.STRUCTURED, _Phase.COLUMNAR)
_TRIAL_STRUCTURED = (_Phase.STRUCTURED, _Phase.COLUMNAR)
_TRIAL_COLUMNAR = (_Phase.COLUMNAR, _Phase.PROBE, _Phase.STRUCTURED)


class ModeGovernor:
    """Says whether the next batch may be structured.

    Attributes:
        switches: How often columnar was found to be worth its bytes.
    """

    __slots__ = (
        "_batches",
        "_columnar",
        "_flush",
        "_made",
        "_much",
        "_next_s",
        "_pause_s",
        "_phase",
        "_probed",
        "_rates",
        "_readings",
        "_seen",
        "_settled_s",
        "_since_s",
        "_trial",
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
        self._made: deque[tuple[int, float]] = deque(maxlen=_MADE_BATCHES)  # readings, seconds
        # when which readings were acknowledged in mode 0, before the first trial
        self._seen: deque[tuple[float, int]] = deque(maxlen=_SEEN_BATCHES)
        self._phase = _Phase.CALM
        self._trial: deque[_Phase] = deque()  # what is still to be measured
        self._rates: dict[_Phase, float] = {}  # what was, in readings a second
        self._probed = 0  # structured batches asked for
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
                self._try(now_s, in_flight)
        elif self._done(now_s):
            self._note(now_s, in_flight)
        if self._phase is _Phase.PROBE:
            self._probed += 1
        elif self._phase is _Phase.CALM:
            return not self._columnar
        return self._phase is not _Phase.COLUMNAR

    def made(self, readings: int, took_s: float) -> None:
        """Note a structured batch that was made, from reading the journal until it was sent.

        Args:
            readings: How many it holds.
            took_s: How long nothing else could be sent for it.
        """
        self._made.append((readings, took_s))

    def answered(self, now_s: float, readings: int, *, columnar: bool = False) -> None:
        """Note a batch that was acknowledged.

        Args:
            now_s: Now.
            readings: How many it held.
            columnar: It went in mode 0.
        """
        if self._phase is _Phase.CALM:
            if columnar and not self._next_s:
                self._seen.append((now_s, readings))
            return
        if self._phase is not _Phase.PROBE and (self._flush or now_s < self._settled_s):
            self._flush = max(0, self._flush - 1)
            self._since_s = now_s
            return
        self._readings += readings
        self._batches += 1

    def restart(self) -> None:
        """Begin anew with the connection or its context: it may be another link."""
        self._columnar = False
        self._phase = _Phase.CALM
        self._made.clear()
        self._seen.clear()
        self._next_s, self._pause_s = 0.0, PAUSE_MIN_S

    def _try(self, now_s: float, in_flight: int) -> None:
        """Begin a trial."""
        self._rates.clear()
        if self._columnar:
            self._made.clear()  # long ago
            self._trial = deque(_TRIAL_COLUMNAR)
        else:
            self._trial = deque(_FIRST_TRIAL if self._seen else _TRIAL_STRUCTURED)
        self._measure(now_s, in_flight)

    def _measure(self, now_s: float, in_flight: int) -> None:
        """Begin to measure what comes next of the trial."""
        self._phase = self._trial.popleft()
        self._probed = 0
        self._flush = in_flight
        self._settled_s = now_s + _SETTLE_S
        self._since_s = now_s
        self._readings = 0
        self._batches = 0

    def _done(self, now_s: float) -> bool:
        if self._phase is _Phase.PROBE:  # that something is answered tells a drain from a dead link
            return self._probed >= _PROBE_BATCHES and self._batches > 0
        if self._flush or not self._batches:
            return False
        took_s = now_s - self._since_s
        return took_s >= _SAMPLE_S and (self._batches >= _SAMPLE_BATCHES or took_s >= _SAMPLE_MAX_S)

    def _note(self, now_s: float, in_flight: int) -> None:
        """Note what was measured, and go on unless it tells enough."""
        rates = self._rates
        gone_s = BEHIND_S
        if self._phase is not _Phase.PROBE:
            rate = rates[self._phase] = self._readings / (now_s - self._since_s)
        else:
            rate = self._made_s()
            if self._seen_s() > rate * _SEEN_PART:
                self._trial.reverse()
                gone_s = BEHIND_MADE_S
            self._seen.clear()
        columnar, structured = rates.get(_Phase.COLUMNAR), rates.get(_Phase.STRUCTURED)
        if columnar is not None and structured is not None:
            self._found(now_s, columnar=columnar > structured * GAIN)
        elif columnar is not None and 0 < self._made_s() * GAIN < columnar:
            self._found(now_s, columnar=True)
        elif self._waiting <= rate * gone_s:
            self._phase = _Phase.CALM
        else:
            self._measure(now_s, in_flight)

    def _made_s(self) -> float:
        """Return how many readings a second are made into structured batches; 0: not known."""
        took_s = sum(took_s for _, took_s in self._made)
        return sum(readings for readings, _ in self._made) / took_s if took_s else 0.0

    def _seen_s(self) -> float:
        """Return how many readings a second were acknowledged in mode 0; 0: not known."""
        seen = self._seen
        took_s = seen[-1][0] - seen[0][0] if seen else 0.0
        return sum(readings for _, readings in seen) / took_s if took_s else 0.0

    def _found(self, now_s: float, *, columnar: bool) -> None:
        """Hold what was found for a while."""
        news = columnar is not self._columnar
        self._pause_s = PAUSE_MIN_S if news else min(PAUSE_MAX_S, self._pause_s * 2)
        self.switches += news and columnar
        self._columnar = columnar
        self._next_s = now_s + self._pause_s
        self._phase = _Phase.CALM
