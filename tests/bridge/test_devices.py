"""Device ids: the first pattern that matches, else the client id."""

import pytest

from bridge.devices import DeviceIds, PatternError


@pytest.mark.parametrize(
    ("patterns", "topic", "device"),
    [
        (["devices/{device}/#"], "devices/t1/temp", "t1"),
        (["devices/{device}/#"], "devices/t1/a/b/c", "t1"),
        (["devices/{device}/#"], "devices/t1", "t1"),
        (["devices/{device}/#"], "devices//temp", "client"),
        (["devices/{device}/#"], "device/t1/temp", "client"),
        (["devices/{device}/#"], "$devices/t1/temp", "client"),
        (["tele/{device}/SENSOR"], "tele/plug/SENSOR", "plug"),
        (["tele/{device}/SENSOR"], "tele/plug/SENSOR/x", "client"),
        (["zigbee2mqtt/0x{device}"], "zigbee2mqtt/0xa1b2", "a1b2"),
        (["shellies/shelly-{device}-relay/+"], "shellies/shelly-a-b-relay/0", "a-b"),
        (["site/{site}/line/{line}/#"], "site/A/line/7/rpm", "A/7"),
        (["{area}/{device}/#"], "hall/lamp/on", "lamp"),
        (["+/{device}"], "x/y", "y"),
        (["#"[:0] + "{device}"], "alone", "alone"),
        (["a/{device}/#", "a/b/{device}"], "a/b/c", "b"),
        (["x/{device}", "a/b/{device}"], "a/b/c", "c"),
        (["a.b/{device}"], "axb/c", "client"),
        (["a/{device}"], "a/line\nbreak", "line\nbreak"),
    ],
)
def test_match(patterns: list[str], topic: str, device: str) -> None:
    assert DeviceIds(patterns).device(topic, "client") == device


def test_default_is_devices_level() -> None:
    ids = DeviceIds()
    assert ids.device("devices/d/x", "c") == "d"
    assert ids.device("other/d/x", "c") == "c"


def test_the_client_id_is_never_kept_for_a_topic() -> None:
    ids = DeviceIds()
    assert ids.device("shared/topic", "first") == "first"
    assert ids.device("shared/topic", "second") == "second"


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "devices/#",
        "a/{}/b",
        "a/{1x}",
        "a/{d}{e}",
        "a/b#/{device}",
        "a/{device",
        "{d}/{d}",
        "a+/{d}",
        "#/{device}",
        "a/}{/{d}",
        "a/{d}\0",
    ],
)
def test_a_pattern_that_cannot_be_used_says_why_in_one_line(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        DeviceIds([pattern])
    assert repr(pattern) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_topics_do_not_grow_the_cache_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.devices._CACHE_ENTRIES_MAX", 10)
    ids = DeviceIds()
    for number in range(100):
        assert ids.device(f"devices/{number}/x", "c") == str(number)
    assert len(ids._cache) <= 10
