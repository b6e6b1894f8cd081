"""Readings made into parts of appends: split by partition, encoded, one body a partition.

Readings of several sources that are appended at the same time share the body of a partition
(bridge/shared_entry.py), where the stream allows it; those of one source are a body that can be
read alone. What goes into a
part is handed to the sinks as well, who then need not decode it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bridge.batch import EntryEncoder
from bridge.envelope import LinkLane
from bridge.kernel import seq_runs
from bridge.readings import Readings
from bridge.select import Block, blocks, growing
from bridge.shared_entry import SharedEncoder
from cloud.stream.contract import Part, Source

__all__ = ["Encoded", "PartEncoder"]

_STEP_READINGS = 4000  # joined without a pause: about 1 ms

# a part about to be appended, its readings, whether they waited through an outage
Encoded = Callable[[Part, Readings, bool], None]


class PartEncoder:
    """Encodes parts, one a partition and source.

    Args:
        encoded: Told of each part; None when nobody wants to know.
        shares: Whether parts may share a body at present: whoever reads the stream knows that.
    """

    __slots__ = ("_encoded", "_encoder", "_shared", "_shares")

    def __init__(
        self, encoded: Encoded | None = None, shares: Callable[[], bool] = lambda: True
    ) -> None:
        self._encoder = EntryEncoder()
        self._shared = SharedEncoder()
        self._encoded = encoded
        self._shares = shares

    def parts(
        self,
        sources: Sequence[Source],
        several: Sequence[Readings],
        *,
        lane: int = LinkLane.LIVE,
        historical: bool = False,
    ) -> Iterator[list[tuple[int, Part]]]:
        """Yield the parts of one or more readings by partition, each with its place in `several`.

        While many are joined no parts are yielded now and then: others may work.

        Args:
            sources: Whose they are, no two alike.
            several: One or more readings each.
            lane: The lane they came by.
            historical: They waited through an outage.

        Raises:
            ValueError: a time the format cannot carry.
        """
        if len(several) > 1 and not self._shares():
            for place, (source, one) in enumerate(zip(sources, several, strict=True)):
                for found in self.parts([source], [one], lane=lane, historical=historical):
                    yield [(place, part) for _, part in found]
            return
        count = sum(map(len, several))
        whole = several[0]
        for grown in growing(several, _STEP_READINGS):
            whole = grown
            if len(whole) < count:
                yield []
        # the link's resolution is not in a batch; without need, microseconds cost 1-2 B a reading
        fine = any(map((1000).__rmod__, whole.times_us))
        for block in blocks(several, whole):
            yield self._parts(block, sources, lane, historical, 1 if fine else 1000)

    def _parts(
        self,
        block: Block,
        sources: Sequence[Source],
        lane: int,
        historical: bool,
        resolution_us: int,
    ) -> list[tuple[int, Part]]:
        """Return the parts of a partition, which share one body."""
        sections = block.sections
        seqs = block.readings.seqs
        found = [seq_runs(seqs, one.first_row, one.end_row) for one in sections]
        owners = [sources[one.origin] for one in sections]
        if len(sections) == 1:
            body = self._encoder.encode(
                *owners[0], block.readings, lane=lane, historical=historical,
                resolution_us=resolution_us, runs=found[0],
            )  # fmt: skip
        else:
            body = self._shared.encode(
                block, owners, [packed for _, packed in found], lane=lane, historical=historical,
                resolution_us=resolution_us,
            )  # fmt: skip
        parts = [
            (
                one.origin,
                Part(block.partition, *owner, ranges, one.end_row - one.first_row, body,
                     len(sections), packed),
            )
            for one, owner, (ranges, packed) in zip(sections, owners, found, strict=True)
        ]  # fmt: skip
        if self._encoded is not None:
            for (_, part), section in zip(parts, sections, strict=True):
                self._encoded(part, block.part(section), historical)
        return parts
