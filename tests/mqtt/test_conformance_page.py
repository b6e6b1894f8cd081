"""docs/mqtt-conformance.md is current, and neither tests nor code name statements that are none."""

from __future__ import annotations

from tests.kit.conformance import PAGE, code_tags, known, marks, page, rows


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tests.kit.conformance"


def test_every_statement_is_proved_or_has_a_reason() -> None:
    for table in rows():
        without = [row.number for row in table if not row.tests and not row.reason]
        assert not without, without
        both = [row.number for row in table if row.tests and row.reason]
        assert not both, both  # a reason stands in for a test


def test_tests_are_marked_with_statements_that_exist() -> None:
    v5, v311 = known()
    every = v5 | {f"3.1.1:{number}" for number in v311}
    assert not set(marks()) - every


def test_code_is_tagged_with_statements_that_exist() -> None:
    v5, v311 = known()
    every = v5 | {f"3.1.1:{number}" for number in v311}
    wrong = {tag: places for tag, places in code_tags().items() if tag not in every}
    assert not wrong, wrong
