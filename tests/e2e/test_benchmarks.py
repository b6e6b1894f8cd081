"""Every comparison with mosquitto runs, small, as `tidegate bench` starts it, and tells figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.mosquitto import mosquitto_program

ROOT = Path(__file__).parents[2]
COMPARISONS = {
    "fan-in": 5,
    "fan-out": 2,
    "pairs": 4,
    "shared-group": 2,
    "subscriptions": 3,
    "retained": 4,
    "connect-rate": 1,
    "tls-connections": 2,
}
ALONE = ("idle-connections", "rounds", "cluster", "scale", "postgres")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidegate", "bench", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,  # a hang; how fast it runs is the machine's affair
    )


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_runs_small_and_tells_a_figure_of_each_broker(name: str) -> None:
    mosquitto_program()
    done = bench(name, "--", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == COMPARISONS[name]
    for row in rows:
        # memory of so few clients may not have grown by a page
        floor = -1e6 if "memory" in row["case"] else 0
        assert row["tidegate"] > floor
        assert row["mosquitto"] > floor


@pytest.mark.parametrize("name", [*ALONE, *COMPARISONS])
def test_its_help_says_what_it_measures_and_how_to_run_it(name: str) -> None:
    done = bench(name, "--", "--help")
    assert done.returncode == 0
    assert f"tidegate bench {name}" in done.stdout
    assert "--quick" in done.stdout


@pytest.mark.parametrize("axis", ["gateways", "devices", "nodes"])
def test_scale_tells_what_a_reading_costs_at_each_point(axis: str) -> None:
    done = bench("scale", "--", "--quick", "--json", "--axis", axis)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["axis"] for row in rows] == [axis] * 2
    assert all(row["node_us"] > 0 and row["ratio"] >= 1 for row in rows)


def test_a_cluster_takes_readings_in_by_each_way() -> None:
    done = bench("cluster", "--", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["case"] for row in rows] == ["one by one", "columnar", "structured"]
    assert all(row["client_us_a_reading"] > 0 and row["readings_per_s"] > 0 for row in rows)


def test_the_list_names_each_with_a_line() -> None:
    lines = bench().stdout.splitlines()
    listed = {line.split()[0]: line for line in lines}
    assert {"idle-connections", *COMPARISONS} <= listed.keys()
    assert not {"load", "flow", "compare", "wire"} & listed.keys()


def test_rounds_tells_what_a_message_costs_alone_and_one_to_one() -> None:
    done = bench("rounds", "--", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["case"] for row in rows] == ["fan-in", "pairs"]
    assert all(0 < row["least_us"] <= row["median_us"] for row in rows)
