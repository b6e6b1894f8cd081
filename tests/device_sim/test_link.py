"""Links: back-off with jitter, seeded; and what a fault in a callback does to the run."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_sim.config import SimConfig
from device_sim.link import BACKOFF_MAX_S, BACKOFF_MIN_S, Link, LinkHost
from device_sim.run import run_sim
from device_sim.traces import Record, TraceError
from mqtt.packets import Publish
from tests.device_sim.test_sources import write_trace
from tests.kit.scripted_broker import ScriptedBroker


def backoffs(seed: int, count: int) -> list[float]:
    host = cast("LinkHost", SimpleNamespace(rng=Random(seed)))
    link = Link(host, 0, "x")
    return [link.next_backoff_s() for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_backoff_grows_with_jitter_to_its_limit(seed: int) -> None:
    waits = backoffs(seed, 200)
    assert 0 <= waits[0] <= BACKOFF_MIN_S
    assert all(BACKOFF_MIN_S <= wait <= BACKOFF_MAX_S for wait in waits[1:])
    assert max(waits) > BACKOFF_MAX_S / 2
    assert len(set(waits)) > 100
    assert waits == backoffs(seed, 200)


async def test_a_trace_that_breaks_while_replayed_ends_the_run_with_its_place(
    tmp_path: Path,
) -> None:
    records = [Record(1000 + n // 100, "a/b", b"x" * 1000) for n in range(1000)]
    path = write_trace(tmp_path / "t.cborseq", records)

    def truncate(_client: str, _publish: Publish) -> int:
        with path.open("r+b") as file:
            file.truncate(500_000)
        return 0

    async with ScriptedBroker(answer=truncate) as broker:
        settings: dict[str, Any] = {"broker": broker.url, "replay": path, "speed": 0.05}
        with pytest.raises(TraceError, match=r"record \d+: the file ends inside it"):
            await run_sim(SimConfig(**settings))
    assert 0 < len(broker.published) < 1000
