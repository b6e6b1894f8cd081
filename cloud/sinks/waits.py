"""What a sink waits for and since when: shown at any time, and said in the log once it is long.

A sink at work notes each step; a step that stays and tries that fail one after another are one
wait, which lasts until the sink has got on. A sink that has nothing to do waits for nothing.

Invariant: a wait of `_LONG_S` is logged while it lasts, again every `_AGAIN_S`, and so is its end.
"""

from __future__ import annotations

import asyncio

import structlog

from runtime.logs import limited

__all__ = ["Waits"]

log = structlog.get_logger(component="sinks")

_LONG_S = 5.0
_AGAIN_S = 30.0
_FIRST_S = 10.0  # between two waits whose first failure is logged


class Waits:
    """The present wait of one sink; belongs to one event loop.

    Attributes:
        cause: Why the last try failed, "" when none has since the sink got on.
    """

    __slots__ = ("_resting", "_said_s", "_since_s", "_sink", "_step", "_timer", "cause")

    def __init__(self, sink: str) -> None:
        self.cause = ""
        self._sink = sink
        self._step: tuple[str, int] = ("", 0)
        self._resting = True
        self._since_s: float | None = None
        self._said_s: float | None = None  # when it was logged last
        self._timer: asyncio.TimerHandle | None = None

    def on(self, step: str, number: int = 0) -> None:
        """Note what is being done, as text with a place for a number; a wait begins, if none is."""
        self._step = (step, number)
        self._resting = False
        if self._since_s is None:
            loop = asyncio.get_running_loop()
            self._since_s = loop.time()
            if self._timer is None:  # it outlives short waits: nothing is armed for each
                self._timer = loop.call_later(_LONG_S, self._look)

    def failed(self, cause: str) -> None:
        """Note that the step failed and will be tried again; the first of a wait is logged."""
        if not self.cause:
            limited(log, ("sink_waits", self._sink), _FIRST_S).warning(
                "sink_waits", sink=self._sink, error=cause, during=self.step
            )
        self.cause = cause

    def rest(self) -> None:
        """Nothing may be left to do: unless a step follows, the wait is over."""
        self._resting = True

    def over(self) -> None:
        """The sink got on."""
        if self._said_s is not None:
            log.info("sink_goes_on", sink=self._sink, waited_s=round(self._lasts_s(), 1))
        self.cause = ""
        self._since_s = self._said_s = None

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def seconds(self) -> float:
        """How long the present wait has lasted, 0 when there is none."""
        return 0.0 if self._resting else self._lasts_s()

    def _lasts_s(self) -> float:
        if self._since_s is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._since_s

    @property
    def step(self) -> str:
        """What is being done, or was tried last."""
        text, number = self._step
        return text.format(number)

    @property
    def said(self) -> str:
        """Why the sink does not get on: a failure, or a step that is long; "" while it does."""
        if self._resting or self.cause:
            return self.cause
        return f"{self.step}: no end for {self.seconds:.0f} s" if self.seconds >= _LONG_S else ""

    def _look(self) -> None:
        self._timer = None
        if self._since_s is None:
            return
        if self._resting:
            self.over()
            return
        now_s = asyncio.get_running_loop().time()
        due_s = self._since_s + _LONG_S if self._said_s is None else self._said_s + _AGAIN_S
        if now_s >= due_s:
            log.warning("sink_waits", sink=self._sink, for_s=round(self.seconds, 1),
                        during=self.step, error=self.cause)  # fmt: skip
            self._said_s, due_s = now_s, now_s + _AGAIN_S
        self._timer = asyncio.get_running_loop().call_at(due_s, self._look)
