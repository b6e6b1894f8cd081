"""Configuration: one declaration, four sources, errors that a person can act on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.config import (
    ConfigError,
    add_arguments,
    flags_of,
    keys,
    load,
    misspelt,
    section,
    setting,
    tables,
)


@dataclass(frozen=True, slots=True)
class Journal:
    commit_window_ms: float = setting(
        2.0, help="Wait for more.", unit="ms", minimum=0, maximum=1000
    )
    durability: str = setting(
        "power-loss", help="What survives.", choices=("power-loss", "process-crash")
    )
    bytes_max: int = setting(1024, help="Cap.", unit="bytes", minimum=0)


@dataclass(frozen=True, slots=True)
class Rule:
    name: str = setting(help="Its name.")
    above: float | None = setting(None, help="Threshold.")


@dataclass(frozen=True, slots=True)
class Config:
    data: Path = setting(Path("tidegate-data"), help="State.", flag="--data")
    urgent: tuple[str, ...] = setting((), help="Urgent topics.")
    console: bool = setting(True, help="Show the console.")
    password: str = setting("", help="Secret.", secret=True)
    journal: Journal = section(Journal, help="Journal.")
    rules: tuple[Rule, ...] = tables(Rule, help="Rules.")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def problem(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Config, file=write(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_alone_make_a_configuration() -> None:
    assert load(Config) == Config()


def test_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path, 'data = "a"\n[journal]\ncommit_window_ms = 5\nbytes_max = 1\n')
    environment = {"TIDEGATE_JOURNAL_COMMIT_WINDOW_MS": "6", "TIDEGATE_JOURNAL_BYTES_MAX": "2"}
    config = load(Config, file=file, environment=environment, flags={"journal.bytes_max": "64 MiB"})
    assert config.data == Path("a")
    assert config.journal == Journal(commit_window_ms=6.0, bytes_max=64 * 2**20)


def test_tables_and_lists(tmp_path: Path) -> None:
    config = load(
        Config,
        file=write(tmp_path, 'urgent = ["a/#"]\n[[rules]]\nname = "hot"\nabove = 3\n'),
        environment={"TIDEGATE_URGENT": "x/#, y"},
    )
    assert config.rules == (Rule("hot", 3.0),)
    assert config.urgent == ("x/#", "y")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[journal]\ncomit_window_ms = 1", "did you mean 'commit_window_ms'?"),
        ("nonsense = 1", "the top level has: console, data"),
        ("[journal]\ncommit_window_ms = 'x'", "expected a number of ms from 0 to 1000, got 'x'"),
        ("[journal]\ncommit_window_ms = nan", "expected a number of ms from 0 to 1000"),
        ("[journal]\ncommit_window_ms = 5000", "from 0 to 1000, got 5000"),
        ("[journal]\ndurability = 'power-los'", "did you mean 'power-loss'?"),
        ("journal = 3", "expected a table [journal]"),
        ("console = 1", "expected true or false, got 1"),
        ("urgent = 'a'", "expected a list, each a text"),
        ("rules = 3", "expected tables [[rules]]"),
        ("[[rules]]\nabove = 3", "rules[1]: 'name' is missing"),
        ("[[rules]]\nname = 'a'\nabve = 3", "did you mean 'above'?"),
        ("a = ", "not TOML"),
    ],
)
def test_one_line_that_says_what_where_and_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    message = problem(tmp_path, text)
    assert said in message
    assert "edge.toml" in message


def test_every_problem_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Config, file=write(tmp_path, "a = 1\nb = 2\nconsole = 3\n"))
    assert len(caught.value.problems) == 3
    assert "(and 2 more)" in str(caught.value)


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    assert "1234" not in problem(tmp_path, "password = 1234")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load(Config, file=tmp_path / "none.toml")
    (tmp_path / "edge.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(Config, file=tmp_path / "edge.toml")


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_bytes(b"\xef\xbb\xbf" + b'data = "a"\r\n')
    assert load(Config, file=file).data == Path("a")


def test_wrong_environment_and_flag_name_themselves() -> None:
    with pytest.raises(ConfigError, match="TIDEGATE_CONSOLE: expected true or false"):
        load(Config, environment={"TIDEGATE_CONSOLE": "maybe"})
    with pytest.raises(ConfigError, match="--journal-bytes-max: expected a whole number"):
        load(Config, flags={"journal.bytes_max": "many"})


def test_a_bound_is_said_with_all_its_digits(tmp_path: Path) -> None:
    @dataclass(slots=True, frozen=True)
    class Sizes:
        packet_bytes: int = setting(0, unit="bytes", maximum=268_435_460, help="Largest packet.")
        share: float = setting(0.1, minimum=0.05, help="A part.")

    (key, share) = keys(Sizes)
    assert key.expected == "a whole number of bytes, at most 268435460"
    assert share.expected == "a number, at least 0.05"
    with pytest.raises(ConfigError, match="at most 268435460, got 268435461"):
        load(Sizes, flags={"packet_bytes": "268435461"})


def test_flags_are_made_from_the_declaration() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Config)
    given = parser.parse_args(["--data", "d", "--journal-commit-window-ms", "7"])
    config = load(Config, flags=flags_of(given, Config))
    assert (config.data, config.journal.commit_window_ms) == (Path("d"), 7.0)


def test_every_key_has_one_environment_variable() -> None:
    names = [key.environment for key in keys(Config) if key.kind != "section"]
    assert len(set(names)) == len(names)
    assert "TIDEGATE_JOURNAL_COMMIT_WINDOW_MS" in names


def test_a_variable_near_a_setting_is_misspelt_and_others_are_somebody_elses() -> None:
    right = next(keys(Journal)).environment
    wrong = right.replace("WINDOW", "WINDWO")
    environment = {right: "1", wrong: "2", "TIDEGATE_STREAM_FOLDER": "x", wrong[9:]: "3"}
    assert misspelt(environment, Journal) == {wrong: right}
