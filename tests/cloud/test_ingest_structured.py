"""Structured batches at the cloud: decoded beside the loop, contexts bounded and begun anew."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.batch import Decoder, Encoder, link_columns
from bridge.columnar import Columns, Limits, unpack
from bridge.envelope import Mode
from bridge.errors import BatchError
from bridge.structured import StructuredEncoder
from bridge.structured_bodies import LINK_LIMITS
from cloud.decoder_process import IN_USE_S, Contexts
from cloud.ingest_structured import REQUEST, StructuredLine, StructuredPool
from tests.kit.columns import START
from tests.kit.readings import one_per_row

MALFORMED = b"\x01 not a body"


def columns(n: int, *, first: int = 0) -> Columns:
    return Columns(
        [("devices/d1/state", "d1")],
        [0] * n,
        [START + 1000 * (first + i) for i in range(n)],
        [1] * n,
        [b'{"t":%d.5}' % (first + i) for i in range(n)],
        [b""] * n,
    )


class Gateway:
    """A gateway's end of the structured mode, and its requests to a `Contexts`."""

    def __init__(self, number: int, contexts: Contexts) -> None:
        self.encoder = StructuredEncoder(LINK_LIMITS)
        self.number = number
        self.contexts = contexts
        self.sent = 0

    def send(self, now_s: float, *, fresh: bool = False) -> bytes:
        """Have the next batch decoded; returns b"" or what was wrong."""
        if fresh:
            self.encoder.reset()
        batch = columns(5, first=self.sent)
        self.sent += 5
        body = self.encoder.encode(batch)
        assert body is not None
        head = REQUEST.pack(True, self.number, fresh, 5, 1 << 20, 0)
        answer = self.contexts.handle(head + body, now_s)
        if answer[:1] == b"\x01":
            return answer[1:]
        assert unpack(answer[1:], 5, 0, Limits()).payloads == batch.payloads
        return b""


def test_each_connection_has_a_context_of_its_own() -> None:
    contexts = Contexts(10)
    gateways = [Gateway(n, contexts) for n in range(3)]
    for turn in range(5):
        for gateway in gateways:
            assert gateway.send(turn) == b""


def test_one_more_takes_the_place_of_the_one_unused_for_longest() -> None:
    contexts = Contexts(2)
    a, b, c = (Gateway(n, contexts) for n in range(3))
    assert a.send(0) == b.send(1) == b""
    assert c.send(IN_USE_S) == b""
    assert a.send(IN_USE_S).startswith(b"mode: ")
    assert b.send(IN_USE_S) == b"", "it was not the one"
    assert a.send(3 * IN_USE_S).startswith(b"context: ")
    assert a.send(3 * IN_USE_S + 1, fresh=True) == b""


def test_one_more_is_refused_while_all_are_in_use() -> None:
    contexts = Contexts(2)
    a, b, c = (Gateway(n, contexts) for n in range(3))
    for turn in range(5):
        now_s = turn * IN_USE_S / 2
        assert a.send(now_s) == b.send(now_s) == b""
        assert c.send(now_s, fresh=True).startswith(b"mode: ")


def test_a_connection_that_is_forgotten_gives_its_place_up() -> None:
    contexts = Contexts(1)
    a, b = Gateway(1, contexts), Gateway(2, contexts)
    assert a.send(0) == b""
    assert contexts.handle(REQUEST.pack(False, 1, False, 0, 0, 0), 0) == b""
    assert b.send(0) == b""


def test_what_is_wrong_with_a_body_ends_its_context_alone() -> None:
    contexts = Contexts(2)
    a, b = Gateway(1, contexts), Gateway(2, contexts)
    assert a.send(0) == b.send(0) == b""
    answer = contexts.handle(REQUEST.pack(True, 1, False, 5, 1 << 20, 0) + MALFORMED, 0)
    assert answer[:1] == b"\x01"
    assert a.send(0).startswith(b"context: ")
    assert b.send(0) == b""


# ---- the process ---------------------------------------------------------------------------------


@asynccontextmanager
async def pool(
    contexts_max: int = 4, snapshots: Path | None = None, *, processes: int = 1
) -> AsyncIterator[StructuredPool]:
    one = StructuredPool(contexts_max, snapshots, 1 << 20, processes=processes)
    for process in one._processes:
        process.worker._retry_s = 0
    try:
        yield one
    finally:
        await one.close()


async def carry(
    line: StructuredLine, encoder: StructuredEncoder, first: int, *, keep: bool = False
) -> None:
    batch = columns(5, first=first)
    body = encoder.encode(batch, keep=keep)
    assert body is not None
    assert (await line.decode(body, 5, Limits())).payloads == batch.payloads


async def test_nothing_is_started_before_a_structured_batch_comes() -> None:
    async with pool() as decoders:
        line = decoders.line("gw")
        assert not decoders.pids
        await carry(line, StructuredEncoder(LINK_LIMITS), 0)
        assert len(decoders.pids) == 1


async def test_with_the_process_go_the_contexts() -> None:
    async with pool() as decoders:
        line, encoder = decoders.line("gw"), StructuredEncoder(LINK_LIMITS)
        await carry(line, encoder, 0)
        os.kill(decoders.pids[0], signal.SIGKILL)
        with pytest.raises(BatchError) as refused:
            await carry(line, encoder, 5)
        assert refused.value.reason == "context"
        line.reset()
        encoder.reset()
        await carry(line, encoder, 10)
        assert decoders.restarts == 1


async def test_connections_that_are_gone_make_room() -> None:
    async with pool(contexts_max=1) as decoders:
        for _ in range(3):
            line = decoders.line("gw")
            await carry(line, StructuredEncoder(LINK_LIMITS), 0)
            del line


async def test_the_mode_may_be_switched_off() -> None:
    async with pool(contexts_max=0) as decoders:
        with pytest.raises(BatchError) as refused:
            await carry(decoders.line("gw"), StructuredEncoder(LINK_LIMITS), 0)
        assert refused.value.reason == "mode"
        assert not decoders.pids


async def test_connections_are_spread_over_the_processes_and_one_that_dies_takes_only_its_own() -> (
    None
):
    async with pool(processes=2) as decoders:
        lines = [(decoders.line(f"gw{n}"), StructuredEncoder(LINK_LIMITS)) for n in range(4)]
        for line, encoder in lines:
            await carry(line, encoder, 0)
        first, _ = decoders.pids
        assert [one.lines for one in decoders._processes] == [2, 2]
        os.kill(first, signal.SIGKILL)
        for number, (line, encoder) in enumerate(lines):
            if number % 2 == 0:
                with pytest.raises(BatchError, match="context"):
                    await carry(line, encoder, 5)
            else:
                await carry(line, encoder, 5)


async def test_a_process_takes_its_part_of_the_contexts_and_goes_on_when_some_are_gone() -> None:
    async with pool(contexts_max=3, processes=8) as decoders:
        assert len(decoders._processes) == 3
        lines = [decoders.line(f"gw{n}") for n in range(3)]
        for line in lines:
            await carry(line, StructuredEncoder(LINK_LIMITS), 0)
        with pytest.raises(BatchError, match="mode"):
            await carry(decoders.line("one more"), StructuredEncoder(LINK_LIMITS), 0)
        del lines[1], line
        await carry(decoders.line("another"), StructuredEncoder(LINK_LIMITS), 0)


def test_a_batch_is_not_finished_once_its_context_was_dropped() -> None:
    readings = one_per_row(5)
    encoder, decoder = Encoder("gw", 1), Decoder("gw")
    opened = decoder.open(encoder.encode(readings, mode=Mode.COLUMNAR))
    decoder.drop_context()
    with pytest.raises(BatchError, match="refused"):
        decoder.finish(opened, link_columns(readings, 1000))


# ---- warm starts ---------------------------------------------------------------------------------


async def test_a_gateway_goes_on_from_a_snapshot_at_a_cloud_that_was_restarted(
    tmp_path: Path,
) -> None:
    encoder = StructuredEncoder(LINK_LIMITS)
    async with pool(snapshots=tmp_path / "a") as structured:
        line = structured.line("gw")
        await carry(line, encoder, 0)
        await carry(line, encoder, 5, keep=True)
    snapshot = encoder.snapshot()
    async with pool(snapshots=tmp_path / "a") as structured:
        warm = StructuredEncoder(LINK_LIMITS)
        warm.restore(*snapshot)
        line = structured.line("gw")
        await carry(line, warm, 10)
        await carry(line, warm, 15)


async def test_any_process_reads_what_another_one_kept(tmp_path: Path) -> None:
    encoder = StructuredEncoder(LINK_LIMITS)
    async with pool(snapshots=tmp_path, processes=2) as structured:
        first = structured.line("gw")
        await carry(first, encoder, 0, keep=True)
        warm = StructuredEncoder(LINK_LIMITS)
        warm.restore(*encoder.snapshot())
        second = structured.line("gw")
        await carry(second, warm, 5)
        assert [one.lines for one in structured._processes] == [1, 1]


@pytest.mark.parametrize("case", ["another node", "another gateway", "none kept", "damaged"])
async def test_a_cloud_without_the_snapshot_refuses_and_takes_a_cold_start(
    tmp_path: Path, case: str
) -> None:
    encoder = StructuredEncoder(LINK_LIMITS)
    async with pool(snapshots=tmp_path / "a") as structured:
        await carry(structured.line("gw"), encoder, 0, keep=case != "none kept")
    snapshot = encoder.snapshot()
    for file in (tmp_path / "a").glob("*"):
        if case == "damaged":
            file.write_bytes(file.read_bytes()[:-1])
    async with pool(snapshots=tmp_path / ("b" if case == "another node" else "a")) as structured:
        line = structured.line("gw-2" if case == "another gateway" else "gw")
        warm = StructuredEncoder(LINK_LIMITS)
        warm.restore(*snapshot)
        body = warm.encode(columns(5, first=5))
        assert body is not None
        with pytest.raises(BatchError) as error:
            await line.decode(body, 5, Limits())
        assert error.value.reason == "snapshot"
        line.reset()
        warm.reset()
        await carry(line, warm, 5)
