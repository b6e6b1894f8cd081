"""The cursors of a sink as the stream has them: kept there, or told to it for a sink that keeps
them itself, so that all nodes know what may be trimmed.

They are saved at most every so often: an entry that comes twice does no harm. Times are the loop's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog

from cloud.stream.contract import Stream

__all__ = ["StreamCursors", "agreed_positions"]

log = structlog.get_logger(component="sinks")

_INTERVAL_S = 0.5  # between commits of cursors the stream keeps
_MIRROR_INTERVAL_S = 5.0  # and of those it is only told


class StreamCursors:
    """One sink's cursors in the stream.

    Args:
        stream: Has them.
        name: The sink's.
        mirror: The name to tell the stream a sink's own cursors by; "": it is not told.

    Attributes:
        kept_by_sink: The sink keeps its cursors itself.
        committed: By partition, as saved from here or found there.
        due_s: When they may be saved, while there is something to save.
    """

    __slots__ = ("_mirror", "_name", "_stream", "committed", "due_s", "kept_by_sink")

    def __init__(self, stream: Stream, name: str, mirror: str) -> None:
        self._stream = stream
        self._name = name
        self._mirror = mirror
        self.kept_by_sink = False
        self.committed: dict[int, int] = {}
        self.due_s = 0.0

    @property
    def is_told(self) -> bool:
        """True when the stream is to have the cursors at all."""
        return not self.kept_by_sink or bool(self._mirror)

    async def load(self, partitions: Collection[int]) -> Mapping[int, int]:
        """Return all cursors the stream keeps for the sink; those of `partitions` are its now."""
        kept = await self._stream.cursors(self._name)
        self.committed.update({p: at for p, at in kept.items() if p in partitions})
        return kept

    def forget(self, partition: int) -> None:
        """Let go of a partition."""
        self.committed.pop(partition, None)

    def ahead(self, reached: Mapping[int, int]) -> dict[int, int]:
        """Return what of the positions reached is to be saved."""
        committed = self.committed
        return {p: at for p, at in reached.items() if at > committed.get(p, 0)}

    def arm(self, now_s: float) -> None:
        """Note that the sink moves on from what was saved."""
        self.due_s = now_s + (_MIRROR_INTERVAL_S if self.kept_by_sink else _INTERVAL_S)

    async def commit(self, ahead: Mapping[int, int]) -> None:
        """Save positions.

        Raises:
            StreamError: the stream does not take them now.
        """
        name = self._mirror if self.kept_by_sink else self._name
        await self._stream.commit_cursors(name, ahead)
        self.committed.update(ahead)


async def agreed_positions(stream: Stream, sink: str, kept: Mapping[int, int]) -> dict[int, int]:
    """Return where to start from, by partition: the cursors kept, unless the stream is otherwise.

    Args:
        stream: To be read from there.
        sink: The name of whose cursors they are, for the log.
        kept: By partition.
    """
    ends = (await stream.stats()).last_positions
    starts = dict(kept)
    for partition, position in kept.items():
        end = ends.get(partition, 0)
        if position > end:
            # the stream is older than the sink: its next entries would get old positions
            log.warning("stream_behind_sink", sink=sink, partition=partition,
                        position=position, stream=end)  # fmt: skip
            starts[partition] = 0
    backlog = await stream.backlog(starts)
    for partition, position in starts.items():
        end = ends.get(partition, 0)
        if position < end and not backlog[partition].entries:  # nothing lies between
            if position:  # a new sink is not meant to see what was trimmed before it
                log.warning("trimmed_before_sink", sink=sink, partition=partition,
                            position=position, stream=end)  # fmt: skip
            starts[partition] = end
    return starts
