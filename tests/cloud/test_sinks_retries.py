"""What holds up a partition, for how long, and when it has had its tries."""

from __future__ import annotations

from cloud.config import SinksConfig
from cloud.sinks.retries import Retries
from cloud.stream.contract import Entry

CONFIG = SinksConfig(tries_max=3, retry_s=1.0, retry_max_s=3.0)


def entry(partition: int, position: int) -> Entry:
    return Entry(partition, position, "gw", 1, ((1, 1),), 1, 0, b"")


def test_an_entry_is_tried_again_after_a_pause_until_it_has_had_its_tries() -> None:
    retries = Retries(CONFIG)
    assert retries.failed(entry(4, 7), "no", 10.0) == 1
    assert (retries.due(10.9), retries.due(11.0), retries.next_s()) == ([], [4], 11.0)
    assert retries.failed(entry(4, 7), "still no", 11.0) == 2
    assert (list(retries.causes), retries.next_s()) == (["still no"], 13.0)
    assert retries.failed(entry(4, 7), "never", 13.0) == 3
    retries.forget(4)
    assert (list(retries.partitions), retries.next_s()) == ([], None)


def test_another_entry_of_the_partition_has_tries_of_its_own() -> None:
    retries = Retries(CONFIG)
    retries.failed(entry(4, 7), "no", 0.0)
    retries.failed(entry(4, 7), "no", 0.0)
    assert retries.failed(entry(4, 6), "no", 0.0) == 1


def test_only_what_lies_behind_it_in_its_own_partition_is_held_up() -> None:
    retries = Retries(CONFIG)
    retries.failed(entry(4, 7), "no", 0.0)
    assert [retries.in_turn(entry(4, position)) for position in (6, 7, 8)] == [True, True, False]
    assert retries.in_turn(entry(5, 100))
    retries.passed({4: 6, 5: 100})
    assert not retries.in_turn(entry(4, 8))
    retries.passed({4: 7})
    assert retries.in_turn(entry(4, 8))


def test_what_could_not_be_read_is_postponed_without_being_counted() -> None:
    retries = Retries(CONFIG)
    retries.failed(entry(4, 7), "no", 0.0)
    retries.postpone(4, "the stream is away", 5.0)
    assert (list(retries.causes), retries.next_s()) == (["the stream is away"], 7.0)
    assert retries.failed(entry(4, 7), "no", 7.0) == 2


def test_pauses_double_up_to_a_limit() -> None:
    assert [Retries(CONFIG).pause_s(tries) for tries in (0, 1, 2, 1000)] == [1.0, 2.0, 3.0, 3.0]
