"""`tidegate cluster demo` and `tidegate bench cluster` as people start them, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tidegate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_the_demonstration_tells_where_to_look_and_balances(tmp_path: Path) -> None:
    done = tidegate(
        "cluster", "demo", "--duration", "4", "--devices", "9", "--rate", "90",
        "--data", str(tmp_path / "demo"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill -9") == 9
    assert done.stdout.count("http://127.0.0.1:") == 6
    assert "balances: 3 accounts" in done.stdout


def test_the_benchmark_runs_small_and_tells_a_figure_of_each_way() -> None:
    done = tidegate("bench", "cluster", "--", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["case"] for row in rows] == ["one by one", "columnar", "structured"]
    assert all(row["readings_per_s"] > 0 for row in rows)
