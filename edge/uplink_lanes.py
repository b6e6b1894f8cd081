"""Which lane of the link sends next, and what: readers, turns and the beginning of a backlog.

Three lanes of the link read two of the journal: urgent its own, live and backlog the journal's live
one at two places. Once the oldest reading that the live lane would send has waited for longer than
`historical_s` (an outage, a hold, a budget, a link that is too slow), all that lies in the journal
becomes backlog but for the last moment's, which is still news, and live goes on from there. So does
what a process that is gone left behind readings that the cloud has (`met`): it was backlog then.

A live batch waits for more readings for `linger_ms` at most, and only while it is not full.
"""

from __future__ import annotations

from bridge.devices import DeviceIds
from bridge.envelope import LinkLane
from bridge.link_pacing import Pace
from bridge.link_shares import Shares
from bridge.readings import Readings
from bridge.uplink_events import Grant
from bridge.uplink_state import UplinkState
from edge.contract import JournalReader, Lane
from edge.uplink_budget import BudgetAccount
from edge.uplink_config import UplinkConfig
from edge.uplink_reader import LaneReader

__all__ = ["UplinkLanes", "journal_lane"]

TICK_S = 1.0  # longest wait without looking again
PARK_S = 60.0  # a connection that may send nothing for longer is not kept: its keep alive costs
_NEWS_S = 2.0  # readings younger than this stay live when all others become backlog
_BEHIND_S = 1.0  # readings this much older than linger: nothing is gained by waiting for more


def journal_lane(lane: int) -> Lane:
    """Return the journal's lane that a lane of the link reads."""
    return Lane.URGENT if lane == LinkLane.URGENT else Lane.LIVE


class UplinkLanes:
    """The lanes of one uplink.

    Args:
        journal: What is carried.
        config: Linger, sizes, shares and ages.
        device_ids: Finds the device of a topic.
        state: Decides what may be sent.
        pace: What the cloud allows of backlog.
        account: What the link may carry.
    """

    def __init__(
        self,
        journal: JournalReader,
        config: UplinkConfig,
        device_ids: DeviceIds,
        state: UplinkState,
        pace: Pace,
        account: BudgetAccount,
    ) -> None:
        self._journal = journal
        self._state = state
        self._pace = pace
        self._account = account
        self._linger_s = config.linger_ms / 1000
        self._late_us = int(config.historical_s * 1_000_000)
        self._shares = Shares(config.backlog_share)
        live = state.settled
        self._readers = {
            LinkLane.URGENT: LaneReader(journal, Lane.URGENT, device_ids),
            LinkLane.LIVE: LaneReader(journal, Lane.LIVE, device_ids),
            LinkLane.BACKLOG: LaneReader(journal, Lane.LIVE, device_ids, live),
        }
        self._since_s: dict[LinkLane, float] = {}  # since when a lane has readings to send
        self._behind: set[LinkLane] = set()
        self._read_out = -1  # the backlog's sent_seq past which the journal has nothing of it
        self._stale_us = 0  # live readings before it become backlog once live is answered; 0: none

    def met(self, held_seq: int) -> None:
        """Hear up to which seq the cloud has some, before this process sends anything.

        What still waits up to there must not go as live: newer readings of its devices went first.
        """
        last_seq = min(held_seq, self._journal.last_seq)
        settled_seq = self._journal.settled_seq
        if settled_seq is None or settled_seq < last_seq:
            self._state.split(last_seq)

    def forget(self) -> None:
        """Read anew what was read ahead: what may be sent has changed."""
        for reader in self._readers.values():
            reader.forget()

    def next(self, now_s: float, batch_readings: int) -> tuple[LinkLane | None, float]:
        """Return the lane to send now, or None and how long to wait unless something happens.

        Args:
            now_s: Now.
            batch_readings: How many readings fill a batch.
        """
        state = self._state
        if self._stale_us:
            self._split(self._stale_us)
        ready: set[LinkLane] = set()
        waiting: set[LinkLane] = set()
        wait_s = TICK_S
        for lane, reader in self._readers.items():
            after_seq = state.sent_seq(lane)
            if lane is LinkLane.BACKLOG:
                if not self._has_backlog():
                    continue
                paced_s = self._pace.wait_s(now_s)
                if paced_s > 0:
                    wait_s = min(wait_s, paced_s)
                    continue
            elif not reader.has_more(after_seq):
                self._since_s.pop(lane, None)
                continue
            elif lane is LinkLane.LIVE and self._stale_us:
                continue
            budget_s = self._account.verdict(lane, state.bytes_in_flight).wait_s
            if budget_s > 0:
                wait_s = min(wait_s, budget_s)
                continue
            waiting.add(lane)
            if not state.can_send(now_s, lane):
                continue
            left_s = self._since_s.setdefault(lane, now_s) + self._linger_s - now_s
            full = self._journal.last_seq - after_seq >= batch_readings
            hurried = lane is not LinkLane.LIVE or lane in self._behind or reader.cut
            if full or hurried or left_s <= 0:
                ready.add(lane)
            else:
                wait_s = min(wait_s, left_s)
        return self._shares.next(ready, waiting, state.window_bytes), wait_s

    def waiting(self) -> int:
        """Return about how many readings wait to be sent: lanes of the journal share seqs."""
        state, last_seq = self._state, self._journal.last_seq
        ahead = max(state.sent_seq(LinkLane.URGENT), state.sent_seq(LinkLane.LIVE))
        waiting = last_seq - ahead
        if state.backlog_end is not None:
            waiting += state.backlog_end - state.sent_seq(LinkLane.BACKLOG)
        return max(0, waiting)

    def parked(self) -> bool:
        """Return True when a connection would be of no use for a while: the budget is closed."""
        if self._account.doubtful():
            return False
        verdict = self._account.verdict(LinkLane.LIVE, self._state.bytes_in_flight)
        if verdict.wait_s < PARK_S:
            return False
        urgent = self._readers[LinkLane.URGENT].has_more(self._state.sent_seq(LinkLane.URGENT))
        return not urgent or self._account.verdict(LinkLane.URGENT, 0).wait_s >= PARK_S

    async def take(self, grant: Grant, now_us: int) -> tuple[Readings | None, bool]:
        """Return the readings of a granted batch, and whether they waited through an outage.

        None when there are none to send; a backlog is then at its end.

        Raises:
            CommitError: the next commit cannot be read.
        """
        lane = LinkLane(grant.lane)
        reader = self._readers[lane]
        if lane is LinkLane.BACKLOG:
            reader.through_seq = self._state.backlog_end
        late_us = now_us - self._late_us
        readings = await reader.take(grant.after_seq, grant.readings_max, grant.bytes_max, late_us)
        self._since_s.pop(lane, None)
        if grant.generation != self._state.generation:
            return None, False
        if readings is None:
            if lane is LinkLane.BACKLOG:
                self._read_out = grant.after_seq
            return None, False
        late = readings.times_us[0] < late_us
        news_us = now_us - min(self._late_us, int(_NEWS_S * 1_000_000))
        if late and lane is LinkLane.LIVE and self._split(news_us):
            return None, False
        waited_s = (now_us - readings.times_us[-1]) / 1e6
        if waited_s > self._linger_s + _BEHIND_S:
            self._behind.add(lane)
        else:
            self._behind.discard(lane)
        return readings, late

    async def take_one(self, lane: int, after_seq: int) -> Readings | None:
        """Return the next reading of a lane alone.

        Raises:
            CommitError: the next commit cannot be read.
        """
        return await self._readers[LinkLane(lane)].take(after_seq, 1, 1, 0)

    def sent(self, lane: int, batch_bytes: int, readings: int) -> None:
        """Note what a lane has sent."""
        self._account.budget.sent(batch_bytes)
        if lane == LinkLane.BACKLOG:
            self._pace.sent(readings)
        self._shares.sent(LinkLane(lane), batch_bytes, self._state.window_bytes)

    def _split(self, news_us: int) -> bool:
        """Make what is in the journal from before `news_us` backlog, now or after live's answers.

        Returns:
            False when a suspect batch has to be dealt with first.
        """
        state = self._state
        waits = state.in_flight(LinkLane.LIVE)
        done = not waits and state.split(self._journal.seq_before(Lane.LIVE, news_us))
        self._stale_us = news_us if waits else 0
        return done or waits

    def _has_backlog(self) -> bool:
        """Return True when the backlog has readings to send, or is to be found empty."""
        state = self._state
        if state.backlog_end is None:
            return False
        return state.sent_seq(LinkLane.BACKLOG) != self._read_out or not state.in_flight(
            LinkLane.BACKLOG
        )
