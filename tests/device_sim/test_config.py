"""SimConfig: bounds hold, and a wrong key is told in one line."""

from __future__ import annotations

import pytest

from device_sim.config import Address, SimConfig
from runtime.config import ConfigError, load


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker:1884", Address("broker", 1884)),
        ("broker", Address("broker", 1883)),
        ("tcp://10.0.0.1", Address("10.0.0.1", 1883)),
        ("mqtt://[::1]:9", Address("::1", 9)),
        ("mqtt://me:p%40ss@h", Address("h", 1883, "me", b"p@ss")),
    ],
)
def test_broker_url_is_parsed(url: str, expected: Address) -> None:
    assert Address.of(url) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mqtts://h", "scheme 'mqtts'"),
        ("mqtt://h:99999", "1-65535"),
        ("mqtt://", "not an address"),
        ("mqtt://h/topic", "not an address"),
    ],
)
def test_wrong_broker_url_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SimConfig(broker=url)


def test_an_address_never_shows_its_password() -> None:
    assert "secret" not in str(Address.of("mqtt://me:secret@h"))


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="zigbee2mqtt"):
        load(SimConfig, flags={"profile": "zigbee"})


def test_rate_is_of_all_devices_together() -> None:
    assert SimConfig(devices=100, rate_per_s=50).device_rate_per_s == 0.5


def test_without_a_rate_a_device_reads_every_five_seconds() -> None:
    assert SimConfig(devices=1000).device_rate_per_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"topic_prefix": "a/+/"},
        {"topic_prefix": "a/{device}/"},
        {"storm_every_s": 5.0},
    ],
)
def test_settings_that_contradict_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"topic_prefix|storm"):
        SimConfig(**wrong)  # type: ignore[arg-type]
