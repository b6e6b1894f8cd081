"""Figures are read at the scrape, and one that cannot be read hides no other."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from runtime.metrics import Metrics


@dataclass(slots=True)
class Stats:
    commits: int = 0
    queue_readings: int = 0


def text(metrics: Metrics) -> list[str]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return body.decode().splitlines()


def test_wrapped_statistics_are_read_at_each_scrape() -> None:
    metrics, stats = Metrics(process=False), Stats()
    metrics.wrap(
        "tidegate_journal",
        stats,
        counters={"commits": "Group commits."},
        gauges={"queue_readings": "Waiting."},
    )
    assert "tidegate_journal_commits_total 0.0" in text(metrics)
    stats.commits, stats.queue_readings = 3, 2
    lines = text(metrics)
    assert "tidegate_journal_commits_total 3.0" in lines
    assert "tidegate_journal_queue_readings 2.0" in lines
    assert "# HELP tidegate_journal_commits_total Group commits." in lines
    assert "# TYPE tidegate_journal_queue_readings gauge" in lines


def test_labels_give_one_line_each() -> None:
    metrics = Metrics(process=False)
    lag = {("storage", "3"): 7.0, ('al"erts', "4"): 0.0}
    metrics.gauge("tidegate_sink_lag_readings", "Lag.", lambda: lag, ("sink", "partition"))
    lines = text(metrics)
    assert 'tidegate_sink_lag_readings{partition="3",sink="storage"} 7.0' in lines
    assert 'tidegate_sink_lag_readings{partition="4",sink="al\\"erts"} 0.0' in lines


def test_a_figure_that_fails_is_left_out_and_counted() -> None:
    metrics = Metrics(process=False)
    metrics.gauge("tidegate_disk_free_bytes", "Free.", lambda: float("none"))
    metrics.gauge("tidegate_other_thing_bytes", "Other.", lambda: 1)
    lines = text(metrics)
    assert "tidegate_other_thing_bytes 1.0" in lines
    assert not any("disk_free" in line for line in lines)
    assert "tidegate_metrics_read_errors_total 1.0" in lines


def test_two_services_in_one_process_do_not_meet() -> None:
    one, two = Metrics(), Metrics()
    one.gauge("tidegate_part_things_bytes", "x", lambda: 1)
    two.gauge("tidegate_part_things_bytes", "x", lambda: 2)
    assert "tidegate_part_things_bytes 1.0" in text(one)
    assert "tidegate_part_things_bytes 2.0" in text(two)
    assert any(line.startswith("process_resident_memory_bytes") for line in text(one))


@pytest.mark.parametrize(
    "name", ["journal_commits", "tidegate_x", "tidegate_a_b_total", "tidegate_A_b", "tidegate__b_c"]
)
def test_foreign_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="tidegate_<part>_<what>_<unit>"):
        Metrics(process=False).gauge(name, "x", lambda: 1)


def test_a_name_twice_is_refused() -> None:
    metrics = Metrics(process=False)
    metrics.gauge("tidegate_a_b", "x", lambda: 1)
    with pytest.raises(ValueError, match="exists already"):
        metrics.counter("tidegate_a_b", "x", lambda: 1)
    with pytest.raises(AttributeError):
        metrics.wrap("tidegate_b", Stats(), counters={"comits": "typo"})


def test_histogram_and_open_metrics() -> None:
    metrics = Metrics(process=False)
    metrics.histogram("tidegate_stream_append_seconds", "x", (0.01, 0.1)).observe(0.05)
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert b'tidegate_stream_append_seconds_bucket{le="0.1"} 1.0' in body
    assert body.endswith(b"# EOF\n")
