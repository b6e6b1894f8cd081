"""Profiles: every device speaks its software's shape, the same for the same seed."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from device_sim.owntracks import Vehicle
from device_sim.profiles import MAKERS, Model, make_model
from device_sim.tasmota import Tasmota
from device_sim.zigbee2mqtt import Climate, zigbee2mqtt

START_S = 1_790_000_000.0
DAY_S = 86_400.0


def fleet(profile: str, devices: int, seed: int = 1) -> list[Model]:
    return [make_model(profile, index, seed) for index in range(devices)]


@pytest.mark.parametrize("profile", MAKERS)
def test_same_seed_gives_the_same_bytes(profile: str) -> None:
    first, again, other = fleet(profile, 20), fleet(profile, 20), fleet(profile, 20, seed=2)
    said = [model.reading(n, START_S + n) for model in first for n in range(12)]
    assert said == [model.reading(n, START_S + n) for model in again for n in range(12)]
    assert said != [model.reading(n, START_S + n) for model in other for n in range(12)]


@pytest.mark.parametrize("profile", MAKERS)
def test_client_ids_are_unique(profile: str) -> None:
    ids = [model.client_id for model in fleet(profile, 3000)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("profile", MAKERS)
def test_what_begins_like_json_is_json_and_all_else_is_a_short_value(profile: str) -> None:
    for model in fleet(profile, 40):
        for n in range(24):
            topic, payload = model.reading(n, START_S + n * 1000.0)
            assert not re.search(r"[+#\0]", topic)
            if payload[:1] == b"{":
                assert isinstance(json.loads(payload), dict)
            else:
                assert 0 < len(payload) <= 16
                float(payload)


def test_a_mixed_fleet_speaks_every_shape() -> None:
    fleet_ = fleet("mixed", 60)
    topics = [model.reading(n, START_S)[0] for model in fleet_ for n in range(12)]
    patterns = [
        "^zigbee2mqtt/climate_",
        "^zigbee2mqtt/plug_",
        "^zigbee2mqtt/motion_",
        "^zigbee2mqtt/contact_",
        "^tele/.*/SENSOR$",
        "^tele/.*/STATE$",
        "^shellies/.*/info$",
        "^shellies/.*/relay/0/power$",
        "/events/rpc$",
        "/status/temperature:0$",
        "/sensor/.*_co2/state$",
        "^owntracks/fleet/",
    ]
    for pattern in patterns:
        assert any(re.search(pattern, topic) for topic in topics), pattern


def test_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="unknown profile 'toaster'; there are: mixed, zigbee2mqtt"
    ):
        make_model("toaster", 0, 1)


def test_temperature_follows_the_day() -> None:
    climate = zigbee2mqtt(0, 5)
    assert isinstance(climate, Climate)

    def mean_at(hour: int) -> float:
        values = []
        for day in range(60):
            _, payload = climate.reading(day, (20_000 + day) * DAY_S + hour * 3600)
            value = json.loads(payload)["temperature"]
            if value is not None:
                values.append(value)
        return float(sum(values) / len(values))

    assert mean_at(15) - mean_at(3) > 3


def test_some_readings_say_that_a_sensor_failed() -> None:
    payloads = [
        model.reading(n, START_S + n * 600)[1] for model in fleet("mixed", 60) for n in range(60)
    ]
    assert any(b"null" in payload for payload in payloads)
    assert any(payload == b"nan" for payload in payloads)


def test_tasmota_counts_energy_up_and_tells_its_time() -> None:
    device = Tasmota(0, 9)
    totals = []
    for n in range(0, 200, 2):
        _, payload = device.reading(n, START_S + n * 300)
        message = json.loads(payload)
        totals.append(message["ENERGY"]["Total"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", message["Time"])
    assert totals == sorted(totals)
    assert totals[-1] > totals[0]


def test_a_vehicle_drives_and_parks_at_speeds_that_fit_its_way() -> None:
    vehicle = Vehicle(3, 4)
    speeds: Counter[bool] = Counter()
    for n in range(2000):
        message = json.loads(vehicle.reading(n, START_S + n * 60)[1])
        assert message["vel"] < 200
        assert -90 <= message["lat"] <= 90
        assert ("cog" in message) == (message["t"] == "u")
        speeds[message["vel"] > 3] += 1
    assert speeds[True] > 200
    assert speeds[False] > 200
