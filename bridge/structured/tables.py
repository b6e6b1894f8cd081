"""Adaptive frequency tables: what both ends learn about the symbols of one kind.

docs/link-format-structured.md section 3.2. A table starts from a prior. Symbols coded with it are
noted; once enough are, the frequencies are made anew from prior and counts. Encoder and decoder
note the same symbols in the same order and rebuild at the same points, so tables stay equal.

Invariant: what a table does next depends on its prior, `counts`, `total` and `log` only.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.structured.kernel import frequencies, native
from bridge.structured.symbols import Prior

__all__ = ["Chain", "Table"]

_GAIN = 2048  # a symbol seen once weighs this much; a whole prior weighs 16384
_TOTAL_MAX = 1024  # counts are halved beyond, so that a table follows what changes
_DUE_MIN = 16
_LOOK_EVERY = 48
_DUE_MAX = 256


class Table:
    """Frequencies of one alphabet.

    Attributes:
        spans: By symbol its start and frequency (`symbols.Spans`).
        log: Symbols since the last rebuild, in order; appended to by the coder.
        due: The length of `log` at which a rebuild follows.
        counts: By symbol how often it was seen, halved now and then; None before any rebuild.
        total: The sum of `counts`.
    """

    __slots__ = ("counts", "due", "log", "prior", "spans", "total")

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.spans = prior.spans
        self.log: list[int] = []
        self.due = _DUE_MIN
        self.counts: list[int] | None = None
        self.total = 0

    def rebuild(self) -> None:
        """Make the frequencies anew from all symbols seen; the log is empty after it."""
        if native is not None:
            native.rebuild(self)
        else:
            self._rebuild()

    def _rebuild(self) -> None:
        counts = self.counts
        if counts is None:
            counts = self.counts = [0] * len(self.prior.freqs)
        log = self.log
        for symbol in log:
            counts[symbol] += 1
        self.total += len(log)
        log.clear()
        if self.total > _TOTAL_MAX:
            counts = self.counts = [count >> 1 for count in counts]
            self.total = sum(counts)
        self.restore(counts)

    def restore(self, counts: list[int]) -> None:
        """Take over `counts` and make the frequencies that belong to them."""
        self.counts = counts
        self.total = sum(counts)
        self.due = max(_DUE_MIN, min(_DUE_MAX, self.total >> 1))
        self.spans = frequencies(self.prior.freqs, counts, _GAIN)


class Chain:
    """The tables of symbols that each choose the table of the next one.

    Attributes:
        tables: By context.
        spans: Their spans, and `logs` alike, at hand for the loops.
        noted: Symbols since the last look for tables to rebuild.
    """

    __slots__ = ("logs", "noted", "spans", "tables")

    def __init__(self, priors: Sequence[Prior]) -> None:
        self.tables = [Table(prior) for prior in priors]
        self.logs = [table.log for table in self.tables]
        self.spans = [table.spans for table in self.tables]
        self.noted = 0

    def note(self, count: int) -> None:
        """Count symbols of a chunk that is done; now and then rebuild the tables that are due."""
        self.noted += count
        if self.noted < _LOOK_EVERY:
            return
        self.noted = 0
        for which, log in enumerate(self.logs):
            if len(log) >= _DUE_MIN:
                table = self.tables[which]
                if len(log) >= table.due:
                    table.rebuild()
                    self.spans[which] = table.spans

    def refresh(self) -> None:
        """Take over tables that were changed from outside."""
        self.logs = [table.log for table in self.tables]
        self.spans = [table.spans for table in self.tables]
