"""The HTTP API: what it answers, what it refuses and how, and that it serves over a socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from cloud.alerts.config import AlertsConfig
from cloud.alerts.sink import AlertSink
from cloud.api import ApiParts, create_app
from cloud.api_config import HttpConfig
from cloud.api_server import ApiServer
from cloud.sinks.contract import SinkUnavailable
from cloud.views import AlertEventView
from runtime.clock import ManualClock
from runtime.service import StartError
from tests.kit.alerts import batch, hot, us
from tests.kit.api import FakeAlerts, FakeNode, alert, api_parts, gateway, ledger
from tests.kit.storage import stored


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[ApiParts]:
    """An API over a storage.db with 60 readings of three devices, one with `/` in its id."""
    parts = api_parts(tmp_path / "storage.db")
    rows = [(n, f"devices/d{n % 2}/state", {"t": n, "deep": [{"x": n / 2}]}) for n in range(1, 51)]
    line = [(n, "site/a/line/b", n) for n in range(51, 61)]
    entries = [
        batch(rows, received=60, first_seq=1),
        batch(line, received=61, first_seq=51, device="a/b"),
    ]
    for one in entries:
        parts.latest.receive(one.gateway, one.epoch, one.received_us, one.readings)
    async with stored(parts.storage.path, *entries):
        yield parts


@pytest.fixture
async def client(parts: ApiParts) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(parts, HttpConfig(rows_max=25))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        yield client


async def got(client: httpx.AsyncClient, path: str, status: int = 200) -> Any:
    answer = await client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


# ---- devices and readings ------------------------------------------------------------------------


async def test_devices_are_paged(client: httpx.AsyncClient) -> None:
    first = await got(client, "/api/v1/devices?limit=2")
    assert [one["device"] for one in first["devices"]] == ["a/b", "d0"]
    assert first["devices"][1] == {
        "device": "d0",
        "gateway": "gw",
        "time": "2023-11-14T22:14:10.000Z",
        "time_us": us(50),
        "received_us": us(60),
        "topics": 1,
    }
    rest = await got(client, f"/api/v1/devices?limit=2&after={first['next']}")
    assert [one["device"] for one in rest["devices"]] == ["d1"]
    assert rest["next"] == ""
    values = await got(client, "/api/v1/devices?match=d1&values=true")
    assert values["devices"][0]["values"][0]["payload"] == {"t": 49, "deep": [{"x": 24.5}]}


async def test_latest_has_the_identity(client: httpx.AsyncClient) -> None:
    assert await got(client, "/api/v1/devices/a%2Fb/latest") == {
        "device": "a/b",
        "values": [
            {
                "topic": "site/a/line/b",
                "time": "2023-11-14T22:14:20.000Z",
                "time_us": us(60),
                "received_us": us(61),
                "gateway": "gw",
                "epoch": "0000000000000007",
                "seq": 60,
                "qos": 1,
                "payload": 60,
                "payload_bytes": 2,
                "stored": True,
            }
        ],
    }
    assert (await got(client, "/api/v1/devices/a/b/latest"))["device"] == "a/b"


async def test_a_value_says_whether_storage_has_it(
    parts: ApiParts, client: httpx.AsyncClient
) -> None:
    node = parts.node
    assert isinstance(node, FakeNode)
    one = batch([(70, "devices/d0/state", 70)], received=70, first_seq=99)
    parts.latest.receive("gw", 7, one.received_us, one.readings, place=(3, 12))
    for reached, proved in (({}, False), ({3: 11}, False), ({4: 99}, False), ({3: 12}, True)):
        node.stored = reached
        (value,) = (await got(client, "/api/v1/devices/d0/latest"))["values"]
        assert (value["seq"], value["stored"]) == (99, proved)
        devices = (await got(client, "/api/v1/devices?values=true&match=d0"))["devices"]
        assert devices[0]["values"] == [value]


async def test_what_is_not_read_yet_is_not_denied(
    parts: ApiParts, client: httpx.AsyncClient
) -> None:
    parts.latest.complete = False
    said = await got(client, "/api/v1/devices/silent/latest", 503)
    assert "being rebuilt" in said["detail"]
    assert (await got(client, "/api/v1/devices/d0/latest"))["device"] == "d0"
    parts.latest.complete = True
    await got(client, "/api/v1/devices/silent/latest", 404)


async def test_readings_are_paged(client: httpx.AsyncClient) -> None:
    seqs: list[int] = []
    after = ""
    while True:
        page = await got(client, f"/api/v1/devices/d1/readings?limit=10&order=asc&after={after}")
        seqs += [one["seq"] for one in page["readings"]]
        after = page["next"]
        if not after:
            break
    assert seqs == list(range(1, 51, 2))


async def test_readings_of_a_field_in_steps(client: httpx.AsyncClient) -> None:
    answer = await got(
        client,
        "/api/v1/devices/d0/readings?field=deep[0].x&every=20s&agg=max&order=asc"
        f"&since={us(10)}&until=2023-11-14T22:13:55Z",
    )
    assert answer == {
        "device": "d0",
        "readings": [
            {
                "time": at,
                "time_us": time_us,
                "device": "d0",
                "topic": "devices/d0/state",
                "value": value,
                "count": count,
            }
            for at, time_us, value, count in (
                ("2023-11-14T22:13:20.000Z", us(0), 9.0, 5),
                ("2023-11-14T22:13:40.000Z", us(20), 17.0, 8),
            )
        ],
        "next": "",
    }


async def test_relative_times_are_of_the_nodes_clock(client: httpx.AsyncClient) -> None:
    answer = await got(client, "/api/v1/devices/d0/readings?since=-55s&until=now-52s")
    assert [one["time_us"] for one in answer["readings"]] == [us(46)]


async def test_device_with_glob_characters_is_itself(tmp_path: Path) -> None:
    parts = api_parts(tmp_path / "storage.db")
    entries = [
        batch([(1, "t/x", 1)], received=1, first_seq=1, device="d[1]*"),
        batch([(1, "t/x", 2)], received=1, first_seq=2, device="d1x"),
    ]
    async with stored(parts.storage.path, *entries):
        transport = httpx.ASGITransport(app=create_app(parts, HttpConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            answer = await got(client, "/api/v1/devices/d%5B1%5D%2A/readings")
    assert [one["payload"] for one in answer["readings"]] == [1]


async def test_payloads_of_any_kind(tmp_path: Path) -> None:
    parts = api_parts(tmp_path / "storage.db")
    payloads = [b"\xff", b"", b"NaN", b'{"a": Infinity}', "\u2603\x1b".encode(), b"[" * 3_000]
    entry = batch([(n, f"t/{n}", payload) for n, payload in enumerate(payloads)], received=9,
                  device="d")  # fmt: skip
    parts.latest.receive(entry.gateway, entry.epoch, entry.received_us, entry.readings)
    async with stored(parts.storage.path, entry):
        transport = httpx.ASGITransport(app=create_app(parts, HttpConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            latest = await got(client, "/api/v1/devices/d/latest")
            answer = await got(client, "/api/v1/devices/d/readings?order=asc")
    expected = ["/w==", "", "NaN", '{"a": Infinity}', "\u2603\x1b", "[" * 3_000]
    for values in (latest["values"], answer["readings"]):
        assert [one.get("payload", one.get("payload_base64")) for one in values] == expected


# ---- the node, alerts, telemetry -----------------------------------------------------------------


async def test_gateways_ledger_partitions_and_status(
    client: httpx.AsyncClient, parts: ApiParts
) -> None:
    assert isinstance(parts.node, FakeNode)
    parts.node.gateway_views.append(gateway("gw-2", connected=False, lag_s=None))
    parts.node.ledger_views.append(ledger("gw-2", balanced=False, missing=2, gaps=((7, 8),)))
    answer = await got(client, "/api/v1/gateways")
    assert [(one["gateway"], one["connected"], one["lag_s"]) for one in answer["gateways"]] == [
        ("gw-1", True, 0.4),
        ("gw-2", False, None),
    ]
    answer = await got(client, "/api/v1/ledger")
    assert answer["balanced"] is False
    assert answer["ledger"][1]["gaps"] == [[7, 8]]
    assert answer["ledger"][0]["losses"][0]["reason"] == "evicted-bytes"
    assert (await got(client, "/api/v1/ledger?gateway=gw-1"))["balanced"] is True
    await got(client, "/api/v1/ledger?gateway=nobody", 404)
    answer = await got(client, "/api/v1/partitions")
    assert answer == {
        "partitions": [
            {
                "partition": 3,
                "last_position": 7,
                "cursors": {"storage": 5},
                "lag_entries": {"storage": 2},
                "owners": {},
                "tokens": {},
            }
        ]
    }
    assert (await got(client, "/status"))["readings_taken"] == 12_345


async def test_alerts_active_and_history(client: httpx.AsyncClient, parts: ApiParts) -> None:
    assert isinstance(parts.alerts, FakeAlerts)
    parts.alerts.views.append(alert("a2", rule="cold", device="fan"))
    answer = await got(client, "/api/v1/alerts")
    assert [one["alert_id"] for one in answer["alerts"]] == ["a1", "a2"]
    assert answer["alerts"][0]["value"] == 91.5
    answer = await got(client, "/api/v1/alerts?rule=cold&device=fan")
    assert [one["alert_id"] for one in answer["alerts"]] == ["a2"]
    assert (await got(client, "/api/v1/alerts?rule=hot&device=fan"))["alerts"] == []

    parts.alerts.events = [
        AlertEventView(str(n), "a1", "firing", "hot", "critical", "d", "", "open", us(n), us(n), "",
                       n % 2 == 0, False)
        for n in range(9, 0, -1)
    ]  # fmt: skip
    ids, before = [], ""
    while True:
        page = await got(client, f"/api/v1/alerts?view=history&limit=4{before}")
        ids += [one["event_id"] for one in page["events"]]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert ids == [str(n) for n in range(9, 0, -1)]
    assert page["events"][0]["value"] == "open"


async def test_alert_is_acknowledged(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/alerts/a1/ack", json={"by": "ann", "note": "on it"})
    assert (answer.status_code, answer.json()["acked_by"]) == (200, "ann")
    assert (await got(client, "/api/v1/alerts"))["alerts"][0]["note"] == "on it"


@pytest.mark.parametrize(
    ("path", "request_keys", "status", "detail"),
    [
        ("a9", {"json": {"by": "ann"}}, 404, "no alert 'a9' is firing; see /api/v1/alerts"),
        ("a1", {"json": {}}, 422, "by: Field required"),
        ("a1", {"json": {"by": ""}}, 422, "by: String should have at least 1 character, got ''"),
        ("a1", {"json": {"by": "x" * 101}}, 422, "by: String should have at most 100"),
        ("a1", {"content": b"{", "headers": {"content-type": "application/json"}}, 422, ""),
        ("a1", {"data": {"by": "ann"}}, 415, "send the body as application/json"),
        ("a1", {"json": {"by": "a", "note": "x" * 20_000}}, 413, "send a body of at most 16384"),
    ],
)
async def test_acknowledgement_that_is_refused(
    client: httpx.AsyncClient, path: str, request_keys: Any, status: int, detail: str
) -> None:
    answer = await client.post(f"/api/v1/alerts/{path}/ack", **request_keys)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)
    assert "\n" not in answer.json()["detail"]


async def test_acknowledgement_that_cannot_be_kept(
    client: httpx.AsyncClient, parts: ApiParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: FakeAlerts, alert_id: str, by: str, note: str) -> None:
        raise SinkUnavailable("alerts.db: disk full")

    monkeypatch.setattr(FakeAlerts, "acknowledge", full)
    answer = await client.post("/api/v1/alerts/a1/ack", json={"by": "ann"})
    assert (answer.status_code, answer.json()["detail"]) == (503, "alerts.db: disk full")


async def test_health_and_readiness_say_why_not(client: httpx.AsyncClient, parts: ApiParts) -> None:
    assert isinstance(parts.node, FakeNode)
    assert await got(client, "/healthz") == {"ok": True, "reasons": []}
    parts.node.unready.append("stream: disk full")
    assert await got(client, "/readyz", 503) == {"ok": False, "reasons": ["stream: disk full"]}
    assert await got(client, "/healthz") == {"ok": True, "reasons": []}


async def test_metrics(client: httpx.AsyncClient, parts: ApiParts) -> None:
    parts.metrics.gauge("tidegate_stream_readings", "Held.", lambda: 5)
    answer = await client.get("/metrics")
    assert "tidegate_stream_readings 5.0" in answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/api/v1/devices/nobody/latest", 404, "device 'nobody' has sent nothing"),
        ("/api/v1/nothing", 404, "no such path: /api/v1/nothing; see /docs"),
        ("/api/v1/devices?limit=0", 422, "limit: Input should be greater than or equal to 1"),
        ("/api/v1/devices?limit=x", 422, "limit: Input should be a valid integer"),
        ("/api/v1/devices?limt=5", 422, "unknown parameter 'limt'; did you mean 'limit'?"),
        ("/api/v1/gateways?x=5", 422, "unknown parameter 'x'; there is none"),
        ("/api/v1/devices/d0/readings?limit=26", 422, "limit: at most 25 rows at once, got 26"),
        ("/api/v1/devices/d0/readings?since=soon", 422, "since: 'soon' is no time"),
        ("/api/v1/devices/d0/readings?every=5", 422, "every: '5' is no duration"),
        ("/api/v1/devices/d0/readings?agg=sum", 422, "agg: 'sum' is none of mean, min"),
        ("/api/v1/devices/d0/readings?field=a[", 422, "field: 'a[' is no path"),
        ("/api/v1/devices/d0/readings?topic=a/%23/b", 422, "topic: "),
        ("/api/v1/devices/d0/readings?after=zz", 422, "after: 'zz' is not the 'next'"),
        ("/api/v1/devices/d0/readings?order=up", 422, "order: Input should be 'asc' or 'desc'"),
        ("/api/v1/alerts?view=all", 422, "view: Input should be 'active' or 'history'"),
    ],
)
async def test_refusals_are_one_line(
    client: httpx.AsyncClient, path: str, status: int, detail: str
) -> None:
    answer = await got(client, path, status)
    assert list(answer) == ["detail"]
    assert answer["detail"].startswith(detail)
    assert "\n" not in answer["detail"]


async def test_wrong_method_names_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/devices")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


async def test_storage_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    parts = api_parts(tmp_path / "none.db")
    transport = httpx.ASGITransport(app=create_app(parts, HttpConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        answer = await got(client, "/api/v1/devices/d0/readings", 503)
    assert answer["detail"].endswith("none.db: no such file")


async def test_failure_tells_nothing_of_the_inside(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeNode, "gateways", lambda self: 1 / 0)
    with structlog.testing.capture_logs() as logs:
        answer = await got(client, "/api/v1/gateways", 500)
    assert answer == {"detail": "this failed; the log says why"}
    assert [(one["event"], one["path"]) for one in logs] == [("request_failed", "/api/v1/gateways")]


# ---- console and documentation -------------------------------------------------------------------


async def test_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs"):
        page = await client.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "<title>" in page.text
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert links
        for link in links:
            assert link.startswith(("/", "#", "data:")), link
            if link.startswith("/console"):
                asset = await client.get(link)
                assert asset.status_code == 200
                assert not re.search(r"https?://(?!www\.w3\.org/)", asset.text)


async def test_every_path_of_the_design_is_documented(client: httpx.AsyncClient) -> None:
    paths = (await got(client, "/openapi.json"))["paths"]
    wanted = {
        f"/api/v1/{name}"
        for name in ("devices", "gateways", "ledger", "alerts", "partitions",
                     "devices/{device}/latest", "devices/{device}/readings", "latest/changes",
                     "alerts/{alert_id}/ack")
    }  # fmt: skip
    assert wanted | {"/metrics", "/healthz", "/readyz", "/status"} == set(paths)
    for path, methods in paths.items():
        for method in methods.values():
            assert method["description"], path


# ---- over a socket -------------------------------------------------------------------------------


async def test_serves_over_a_socket_and_stops(parts: ApiParts) -> None:
    server = ApiServer(create_app(parts, HttpConfig()), host="127.0.0.1", port=0)
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        answers = await asyncio.gather(*(got(client, "/api/v1/devices") for _ in range(5)))
        assert len(answers[0]["devices"]) == 3
        latest = await got(client, "/api/v1/devices/a%2Fb/latest")
        assert latest["device"] == "a/b"
        second = ApiServer(create_app(parts, HttpConfig()), host="127.0.0.1", port=server.port)
        with pytest.raises(StartError, match=rf"http: cannot listen on 127\.0\.0\.1:{server.port}"):
            await second.start()
        await second.stop()
    await server.stop()
    with pytest.raises(OSError, match=r"."):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


async def test_real_alerts_behind_the_api(parts: ApiParts, tmp_path: Path) -> None:
    """The alerts sink is an AlertsView: history and acknowledgement through HTTP."""

    async def heads() -> dict[int, int]:
        return {}

    clock = ManualClock(wall_us=us(0))
    sink = AlertSink(AlertsConfig(rule=(hot(),)), tmp_path / "alerts.db", clock, heads, None)
    await sink.open(1)
    engine = sink._engine(0)
    entry = batch([(0, "devices/d/t", 31)], received=0)
    sink._note(engine, engine.receive(entry, entry.received_us))
    real = ApiParts(parts.node, parts.latest, parts.storage, parts.metrics, clock, sink)
    transport = httpx.ASGITransport(app=create_app(real, HttpConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        (active,) = (await got(client, "/api/v1/alerts"))["alerts"]
        answer = await client.post(f"/api/v1/alerts/{active['alert_id']}/ack", json={"by": "ann"})
        assert json.loads(answer.text)["acked_by"] == "ann"
        events = (await got(client, "/api/v1/alerts?view=history"))["events"]
    assert [one["state"] for one in events] == ["acknowledged", "firing"]
    await sink.close()
