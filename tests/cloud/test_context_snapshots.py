"""Snapshots at the cloud: bounded, each gateway's its own, and lost without harm."""

from __future__ import annotations

from pathlib import Path

from cloud.context_snapshots import SnapshotFolder
from tests.kit.small_disk import small_disk


def test_a_gateway_gets_back_what_was_kept_for_it_also_after_a_restart(tmp_path: Path) -> None:
    SnapshotFolder(tmp_path / "s", 1000).of("a").put(b"1", b"one")
    folder = SnapshotFolder(tmp_path / "s", 1000)
    assert folder.of("a").get(b"1") == b"one"
    assert folder.of("b").get(b"1") is None
    assert folder.of("a").get(b"2") is None


def test_the_last_two_of_a_gateway_are_kept(tmp_path: Path) -> None:
    mine = SnapshotFolder(tmp_path, 1000).of("a")
    for name in (b"1", b"2", b"3"):
        mine.put(name, name)
    assert [mine.get(name) for name in (b"1", b"2", b"3")] == [None, b"2", b"3"]
    assert len(list(tmp_path.iterdir())) == 2


def test_those_unused_for_longest_give_way_to_the_bound(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, 100)
    for gateway in "abc":
        folder.of(gateway).put(b"1", bytes(30))
    assert folder.of("a").get(b"1") is not None
    folder.of("d").put(b"1", bytes(30))
    assert [bool(folder.of(gateway).get(b"1")) for gateway in "abcd"] == [True, False, True, True]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 100
    folder.of("e").put(b"1", bytes(101))
    assert folder.of("e").get(b"1") is None
    assert folder.of("d").get(b"1") is not None
    smaller = SnapshotFolder(tmp_path, 50)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 50
    assert sum(bool(smaller.of(gateway).get(b"1")) for gateway in "abcd") == 1


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    folder = SnapshotFolder(tmp_path / "s", 100)
    folder.of("a").put(b"1", b"one")
    assert folder.of("a").get(b"1") is None


def test_a_full_disk_is_not_made_fuller_by_what_could_not_be_written_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        folder = SnapshotFolder(disk, 1 << 20)
        for name in (b"1", b"2", b"3"):
            folder.of("a").put(name, bytes(100_000))
            assert list(disk.iterdir()) == []
        folder.of("a").put(b"4", b"four")
        assert folder.of("a").get(b"4") == b"four"


def test_what_a_process_left_that_died_as_it_wrote_is_removed(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, 1000)
    folder.of("a").put(b"1", b"one")
    (whole,) = tmp_path.iterdir()
    whole.with_name(whole.name + ".new").write_bytes(b"on")
    for number in range(2):
        SnapshotFolder(tmp_path, 1000, (number, 2))
    assert list(tmp_path.iterdir()) == [whole]


def test_a_file_that_went_away_is_not_there(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, 100)
    folder.of("a").put(b"1", b"one")
    next(tmp_path.iterdir()).unlink()
    assert folder.of("a").get(b"1") is None


def test_several_share_a_folder_and_together_keep_to_the_bound(tmp_path: Path) -> None:
    whole = SnapshotFolder(tmp_path, 2000)
    for gateway in range(40):
        whole.of(f"g{gateway}").put(b"1", bytes(40))
    halves = [SnapshotFolder(tmp_path, 600, (number, 2)) for number in range(2)]
    assert 600 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1200
    halves[0].of("new").put(b"1", b"new")
    assert halves[1].of("new").get(b"1") == b"new"
    halves[1].of("new").put(b"2", b"newer")
    assert halves[0].of("new").get(b"2") == b"newer"
