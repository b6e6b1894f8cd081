"""The HTTP API as a store, asked of the cloud's real application over stored rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.api import ApiParts, create_app
from cloud.api_config import HttpConfig
from cloud.query_format import payload_json
from cloud.sinks.schema import epoch_text
from device_sim import http_store
from device_sim.http_store import HttpStore
from device_sim.judge import Verdict
from device_sim.stores import VerifyError, open_store
from device_sim.verify import verify
from tests.device_sim.test_judge import Run
from tests.kit.alerts import batch
from tests.kit.api import FakeNode, api_parts, ledger
from tests.kit.storage import stored

EPOCH = 7  # of tests.kit.alerts.batch


@dataclass
class Cloud:
    """A node's API over a storage.db; the ledger says what it is told to say."""

    parts: ApiParts
    store: HttpStore
    path: Path  # of the storage.db

    def tells(self, stored: int) -> None:
        """Let the ledger say that so many readings are assigned and stored."""
        node = self.parts.node
        assert isinstance(node, FakeNode)
        view = ledger("gw", epoch=epoch_text(EPOCH), assigned=stored, stored=stored)
        node.ledger_views = [view]

    async def judged(self, run: Run, before: int = 0) -> Verdict:
        """Verify a run whose rows follow `before` rows of another."""
        old = [("devices/dev0/json", b'{"v":1,"d":0}')] * before
        rows = [*old, *run.rows]
        # what came first has the latest time: the order of storage is that of seq
        entry = batch(
            [(len(rows) - n, topic, payload) for n, (topic, payload) in enumerate(rows)],
            received=1,
        )
        self.parts.latest.receive(entry.gateway, entry.epoch, 1 << 60, entry.readings)
        self.tells(before)
        await self.store.begin()
        self.tells(len(rows))
        async with stored(self.path, entry):
            verdict, _ = await verify(run.truth, run.source, self.store, timeout_s=0)
        return verdict


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    path = tmp_path / "storage.db"
    parts = api_parts(path)
    transport = httpx.ASGITransport(create_app(parts, HttpConfig(rows_max=7)))
    return Cloud(parts, HttpStore("http://node", transport), path)


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("before", [0, 5])
async def test_a_perfect_run_is_verified_page_by_page(
    cloud: Cloud, stamped: bool, before: int
) -> None:
    verdict = await cloud.judged(Run(stamped=stamped), before)
    assert verdict.ok, verdict.summary()
    assert verdict.stored == 60


@pytest.mark.parametrize("stamped", [True, False])
async def test_faults_are_found_by_value(cloud: Cloud, stamped: bool) -> None:
    run = Run(stamped=stamped)
    lost = run.rows.pop(40)
    run.rows[3], run.rows[5] = run.rows[5], run.rows[3]
    run.rows.append(run.rows[-1])
    verdict = await cloud.judged(run)
    assert lost
    assert (verdict.lost, verdict.doubled, verdict.reordered) == (1, 1, 1)
    assert verdict.altered == 0


@given(
    st.binary(max_size=40)
    | st.text(max_size=20).map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value, indent=1).encode())
)
def test_canonical_is_how_the_api_shows_a_payload(payload: bytes) -> None:
    shown = payload_json(payload)
    value = shown.get("payload", shown)
    assert HttpStore.canonical(payload) == json.dumps(value, separators=(",", ":")).encode()


async def answering(handler: httpx.Response | Exception) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        if isinstance(handler, Exception):
            raise handler
        return handler

    await HttpStore("http://node:1/", httpx.MockTransport(answer)).begin()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.ConnectError("refused"), r"http://node:1: refused; is the cloud's HTTP port there"),
        (httpx.Response(404, json={"detail": "no such path"}), "answered 404: no such path"),
        (httpx.Response(200, text="<html>"), "answered 200: not Tidegate's API"),
    ],
)
async def test_a_wrong_url_is_told_in_one_line(
    answer: httpx.Response | Exception, says: str
) -> None:
    with pytest.raises(VerifyError, match=says):
        await answering(answer)


async def test_a_busy_node_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_store, "_PAUSE_S", 0.0)
    answers = [httpx.Response(503, json={"detail": "busy"})] * 3
    last = httpx.Response(200, json={"balanced": True, "ledger": []})

    def answer(_request: httpx.Request) -> httpx.Response:
        return answers.pop() if answers else last

    await HttpStore("http://node", httpx.MockTransport(answer)).begin()
    assert not answers
    with pytest.raises(VerifyError, match="answered 503: busy"):
        await answering(httpx.Response(503, json={"detail": "busy"}))


async def test_a_fault_while_reading_devices_is_one_error(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_store, "_PAUSE_S", 0.0)
    entry = batch([(1, "devices/a/x", 1), (2, "devices/b/x", 2)], received=1)
    cloud.parts.latest.receive(entry.gateway, entry.epoch, 1 << 60, entry.readings)
    cloud.path.unlink(missing_ok=True)
    with pytest.raises(VerifyError, match="answered 503"):
        await cloud.store.feed(lambda topic, payload, received_us: None)


def test_an_http_url_names_the_api() -> None:
    assert isinstance(open_store("http://127.0.0.1:8080/"), HttpStore)
