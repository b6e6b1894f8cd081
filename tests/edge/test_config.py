"""The gateway's configuration: what is accepted, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config import EdgeConfig
from edge.uplink_config import Endpoint, UplinkConfig
from runtime.config import ConfigError, load


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("mqtt://cloud", Endpoint("cloud", 1883, tls=False)),
        ("mqtt://cloud:2883", Endpoint("cloud", 2883, tls=False)),
        ("mqtts://cloud.example/", Endpoint("cloud.example", 8883, tls=True)),
        ("mqtt://[::1]:2883", Endpoint("::1", 2883, tls=False)),
        ("mqtt://192.0.2.7:1", Endpoint("192.0.2.7", 1, tls=False)),
    ],
)
def test_endpoint(url: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(url) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "url",
    ["", "cloud", "cloud:2883", "http://cloud", "mqtt://", "mqtt://cloud:0", "mqtt://cloud:99999",
     "mqtt://cloud:x", "mqtt://cloud/path", "mqtt://user@cloud", "mqtt://cloud?x=1"],
)  # fmt: skip
def test_an_endpoint_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="mqtt://HOST:PORT") as caught:
        Endpoint.parse(url)
    assert repr(url) in str(caught.value)


def edge_toml(folder: Path, text: str) -> Path:
    path = folder / "edge.toml"
    path.write_text(text)
    return path


def test_a_gateway_from_toml(tmp_path: Path) -> None:
    path = edge_toml(
        tmp_path,
        """
        gateway = "site-7"
        devices = ["tele/{device}/SENSOR"]
        [uplink]
        endpoints = ["mqtt://a:1", "mqtt://b:2"]
        linger_ms = 10
        """,
    )
    config = load(EdgeConfig, file=path)
    assert config.gateway_id == "site-7"
    assert config.uplink.endpoints == ("mqtt://a:1", "mqtt://b:2")
    assert config.uplink.linger_ms == 10


def test_without_a_name_the_gateway_is_called_as_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "pi-4")
    assert EdgeConfig().gateway_id == "pi-4"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('gateway = "a/b"', "a/b"),
        ('gateway = "a+"', "'gateway'"),
        ('gateway = "$x"', "'gateway'"),
        (f'gateway = "{"x" * 129}"', "'gateway'"),
        ('devices = ["devices/#"]', "placeholder"),
        ('[uplink]\nendpoints = ["cloud:1883"]', "cloud:1883"),
        ('[uplink]\npassword = "x"', "username"),
        ('[uplink]\ntls_key_file = "x"', "tls_cert_file"),
        ("[uplink]\nbackoff_min_s = 5\nbackoff_max_s = 1", "backoff_max_s"),
        ("[uplink]\nlinger_ms = -1", "linger_ms"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(EdgeConfig, file=edge_toml(tmp_path, text))
    (line,) = str(caught.value).splitlines()
    assert told in line
    assert "edge.toml" in line


def test_a_password_is_never_shown() -> None:
    assert "secret!" not in repr(UplinkConfig(username="u", password="secret!"))
