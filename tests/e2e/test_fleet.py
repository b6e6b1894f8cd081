"""A fleet that comes back at once, in short: everybody gets through, and every reading is stored.

The full form, with its figures, is benchmarks/fleet.py.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from benchmarks.fleet import Fleet, jain


async def test_every_gateway_of_a_fleet_gets_through_and_every_reading_is_stored_once(
    tmp_path: Path,
) -> None:
    pacing = "[pacing]\nlag_target_s = 0.1\ninterval_s = 0.1"
    report = await Fleet(tmp_path, 60, 400, cloud=pacing).run(timeout_s=600)
    with closing(sqlite3.connect(tmp_path / "cloud" / "storage.db")) as connection:
        rows = connection.execute(
            "SELECT gateway, count(DISTINCT seq) FROM readings WHERE seq <= 400 GROUP BY gateway"
        ).fetchall()
    assert sorted(rows) == sorted((f"gw-{n}", 400) for n in range(60))
    assert report.stored >= 60 * 400


def test_jain_is_one_for_equals_and_one_in_n_for_one_that_has_all() -> None:
    assert jain([5, 5, 5, 5]) == 1.0
    assert jain([20, 0, 0, 0]) == 0.25
    assert jain([0, 0]) == 1.0
