"""tidegate reload and SIGHUP on a real process: what is taken, what is told, who stays."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from cloud.alerts.config import AlertsConfig, RuleConfig, WebhookConfig
from edge.config import EdgeConfig, JournalConfig
from runtime.reload import ProcessFile, Reloaded, changed_keys, process_started
from tests.kit.nodes import node_config, running_node
from tests.kit.processes import Process, free_ports, wait_for
from tests.kit.sites import client_at, until
from tests.kit.webhooks import WebhookServer
from tidegate.main import main


class Edge:
    """A gateway with a configuration file of a test's own, and a client that stays."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.file = folder / "edge.toml"
        (self.port,) = free_ports(1)
        self.write()
        self.process = Process(["edge", "-c", str(self.file)], folder / "log", port=self.port)
        self.process.start()
        wait_for("process.json", (self.data / "edge" / "process.json").exists)

    def write(self, access: str = "", top: str = "") -> None:
        self.file.write_text(
            f'data = "{self.data}"\nhost = "127.0.0.1"\nport = {self.port}\n{top}\n'
            f"[http]\nenabled = false\n[access]\n{access}\n"
        )

    def reload(self) -> int:
        return main(["reload", "--data", str(self.data)])

    def connect(self) -> tuple[paho.Client, int]:
        """Return a client and the answer to its CONNECT."""
        codes: list[int] = []
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.on_connect = lambda _c, _u, _f, reason, _p: codes.append(reason.value)
        client.connect("127.0.0.1", self.port)
        while not codes:
            client.loop(0.1)
        return client, codes[0]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(tmp_path)
    yield edge
    edge.process.stop()


def still_there(client: paho.Client) -> bool:
    """Return True when a client's subscription is answered on the connection it has."""
    answered: list[int] = []
    client.on_subscribe = lambda _c, _u, mid, _r, _p: answered.append(mid)
    client.subscribe("a")
    while not answered:
        if client.loop(0.1) != paho.MQTT_ERR_SUCCESS:
            return False
    return True


def test_what_changed_is_taken_and_clients_stay(
    edge: Edge, capsys: pytest.CaptureFixture[str]
) -> None:
    client, code = edge.connect()
    assert code == 0
    edge.write('preset = "own-devices"', "[broker]\nsubscriptions_max = 5")
    assert edge.reload() == 0
    out = capsys.readouterr().out
    assert "access.preset, broker.subscriptions_max" in ", ".join(sorted(out.split(": ")[1:]))
    assert still_there(client)
    edge.write('anonymous = "never"')
    assert edge.reload() == 0
    assert edge.connect()[1] == 0x87
    wait_for("the client's end", lambda: client.loop(0.1) != paho.MQTT_ERR_SUCCESS)


def test_what_waits_for_a_restart_is_named(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    edge.write(top="[journal]\ncommit_window_ms = 50")
    assert edge.reload() == 0
    assert "these wait for a restart: journal.commit_window_ms" in capsys.readouterr().out


def test_a_configuration_that_is_wrong_changes_nothing(
    edge: Edge, capsys: pytest.CaptureFixture[str]
) -> None:
    client, _ = edge.connect()
    for access, says in [
        ('anonymous = "nobody"', "expected one of 'loopback', 'always', 'never'"),
        ('password_file = "/nowhere/users"', "/nowhere/users: cannot be read"),
    ]:
        edge.write(access)
        assert edge.reload() == 1
        assert says in capsys.readouterr().err
        assert edge.connect()[1] == 0
        assert still_there(client)


def test_sighup_reloads_too(edge: Edge) -> None:
    edge.write('anonymous = "never"')
    os.kill(edge.process.pid, signal.SIGHUP)
    wait_for("the reload", lambda: edge.connect()[1] == 0x87)


def test_the_process_file_goes_with_the_process(edge: Edge) -> None:
    file = edge.data / "edge" / "process.json"
    assert file.stat().st_mode & 0o777 == 0o600
    edge.process.stop()
    assert not file.exists()


def test_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reload", "--data", str(tmp_path)]) == 1
    assert "nothing runs on" in capsys.readouterr().err


def test_a_process_with_the_same_id_is_not_signalled(tmp_path: Path) -> None:
    file = ProcessFile(tmp_path / "process.json")
    file.write(Reloaded())
    assert file.read() is not None
    data = json.loads(file.path.read_text())
    file.path.write_text(json.dumps(data | {"started": data["started"] - 1}))
    assert file.read() is None
    file.path.write_text("{}")
    assert file.read() is None
    assert process_started(1 << 30) is None


def test_changed_keys_are_named_by_their_path() -> None:
    one, other = EdgeConfig(), EdgeConfig(port=1, journal=JournalConfig(commit_window_ms=7))
    assert changed_keys(one, one) == []
    assert changed_keys(one, other) == ["port", "journal.commit_window_ms"]


async def test_alert_rules_are_taken_while_the_node_runs(tmp_path: Path) -> None:
    config = node_config(tmp_path)
    hot = RuleConfig(name="hot", kind="threshold", op=">", value=30.0)
    async with (
        running_node(tmp_path, config=config) as node,
        client_at(node.port, "d1") as (device, _),
    ):
        wanted = replace(config, alerts=replace(config.alerts, rule=(hot,)))
        result = await node.reload(wanted)
        assert (result.taken, result.needs_restart, result.problem) == (["alerts.rule"], [], "")
        assert (await node.reload(wanted)).taken == []
        await device.publish("devices/d1/value", b"31", 1)
        assert node._alerts.sink is not None
        active = node._alerts.sink.active
        await until("it fires", lambda: [view.rule for view in active()] == ["hot"])


async def test_webhooks_and_limits_of_alerts_are_taken_while_the_node_runs(tmp_path: Path) -> None:
    hot = RuleConfig(name="hot", kind="threshold", op=">", value=30.0)
    first, second = WebhookServer(), WebhookServer()
    await first.start()
    await second.start()
    alerts = AlertsConfig(rule=(hot,), webhook=(WebhookConfig(name="first", url=first.url),))
    config = node_config(tmp_path, alerts=alerts)
    try:
        async with (
            running_node(tmp_path, config=config) as node,
            client_at(node.port, "d1") as (device, _),
        ):
            await device.publish("devices/d1/value", b"31", 1)
            await until("the first is told", lambda: len(first.received) == 1)
            wanted = replace(
                alerts,
                webhook=(WebhookConfig(name="second", url=second.url),),
                limits=replace(alerts.limits, series_max=1),
            )
            result = await node.reload(replace(config, alerts=wanted))
            assert sorted(result.taken) == ["alerts.limits.series_max", "alerts.webhook"]
            assert (result.needs_restart, result.problem) == ([], "")
            await device.publish("devices/d1/value", b"20", 1)
            await until("the second is told", lambda: len(second.received) == 1)
            assert second.received[0].body["state"] == "resolved"
            await device.publish("devices/d2/value", b"31", 1)
            assert node._alerts.sink is not None
            stats = node._alerts.sink.stats
            await until("another device is one too many", lambda: stats.refused_series == 1)
        assert len(first.received) == 1
    finally:
        await first.stop()
        await second.stop()
