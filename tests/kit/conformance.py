"""docs/mqtt-conformance.md: every statement that binds a server, and the tests marked with it.

python -m tests.kit.conformance      in a checkout's root: write the page anew

The statements and what is said of them stand in tests/mqtt/conformance.toml; which tests prove
them is read from the `conformance` marks in the sources, so that nothing has to run. A test of a
statement of 5.0 counts for the same statement of 3.1.1 when it has a parameter `version`.
"""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PAGE", "Row", "code_tags", "known", "marks", "page", "rows"]

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "mqtt-conformance.md"
_TESTS = ROOT / "tests" / "mqtt"
_CLIENTS = re.compile(r"test_(client.*|aio)\.py")  # prove something about clients
_SHOWN = 4  # tests named for each statement

_HEAD = """\
# MQTT conformance

Made by `python -m tests.kit.conformance` from tests/mqtt/conformance.toml and the marks of the
tests; a test fails when it is out of date.

Every normative statement of MQTT 5.0 and 3.1.1 that binds a server, by its number and in our own
words. *met*: proved by the tests named, the first few of them; those of `test_conformance_*` speak
raw bytes over sockets, without our codec. *indirectly*: for the reason given. *not*: deliberately,
for the reason given. The lines of code that obey carry the same numbers.
"""

_TAIL = """\
## Where the specifications leave a choice

- MQTT 3.1 (`MQIsdp`) and older levels are told return code 1 and closed. A later level gets the
  CONNACK of the version whose layout its CONNECT has. Any other protocol name is closed in silence,
  except that level 5 is told 0x84.
- A malformed CONNECT of 5.0 is told why in a CONNACK; in 3.1.1 the connection is just closed.
- Control characters and Unicode non-characters are allowed in strings.
- Overlapping subscriptions give one copy, with every identifier and the highest QoS; what a client
  published itself comes to it by those of them that are not no-local.
- A QoS 2 message is handed on when it has come, not when it is released; a captured one of
  a session that lasts, when it is on disk.
- QoS 0 messages for clients that are away, or that do not read, are dropped and counted.
- A will is sent when its session ends, however long its delay; taking over a connection closes it,
  and so sends a will without delay.
- An acknowledgement that the QoS of its PUBLISH does not have is a protocol error; one for a packet
  identifier that is not in use is answered with 0x92 or ignored.
- Retained messages are not sent to shared subscriptions. `$share/` works for 3.1.1 clients too.
- A session's expiry is cut to `session_expiry_max_s`, and a v5 client is told.
- Publishing to `$SYS/` is refused: 0x87, or acknowledged and dropped in 3.1.1.
"""

_PATTERN = re.compile(r"\[MQTT-([0-9.:]+-[0-9]+(?:\.\.[0-9]+)?)\]")  # sections have no -n


@dataclass(slots=True)
class Row:
    """One statement."""

    number: str
    text: str
    tests: list[str] = field(default_factory=list)  # file::function
    reason: str = ""  # why there is no test, or why it is not met
    deliberately_not: bool = False

    @property
    def status(self) -> str:
        """What the page says."""
        if self.deliberately_not:
            return "not"
        return "indirectly" if self.reason else "met"


@dataclass(slots=True, frozen=True)
class Marked:
    """One marked test."""

    name: str
    both_versions: bool


def marks() -> dict[str, list[Marked]]:
    """Return the tests that are marked with each statement, `MQTT-` left out."""
    found: dict[str, list[Marked]] = {}
    for path in sorted(_TESTS.glob("test_*.py")):
        if _CLIENTS.fullmatch(path.name):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = {argument.arg for argument in node.args.args}
                marked = Marked(f"{path.name}::{node.name}", "version" in arguments)
                for number in _numbers(node):
                    found.setdefault(number, []).append(marked)
    return found


def known() -> tuple[set[str], set[str]]:
    """Return the numbers of all statements of 5.0 and of 3.1.1, those on clients included."""
    data = _data()
    return (
        set(data["v5"]) | set(data["v5-client"]["numbers"]),
        set(data["v311"]) | set(data["v311-client"]["numbers"]),
    )


def rows() -> tuple[list[Row], list[Row]]:
    """Return the statements of 5.0 and of 3.1.1 in order."""
    data = _data()
    marked = marks()
    v5 = [_row(data, "v5", number, text) for number, text in data["v5"].items()]
    for row in v5:
        row.tests = _names(marked.get(row.number, []))
    v311 = []
    for number, text in data["v311"].items():
        same = text.removeprefix("=") if text.startswith("=") else ""
        row = _row(data, "v311", number, data["v5"][same] if same else text)
        tests = list(marked.get(f"3.1.1:{number}", []))
        if same:
            tests += [test for test in marked.get(same, []) if test.both_versions]
        row.tests = _names(tests)
        v311.append(row)
    return v5, v311


def code_tags() -> dict[str, set[str]]:
    """Return where the code is tagged with each statement, `MQTT-` left out."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "mqtt").rglob("*.py")):
        for tag in _PATTERN.findall(path.read_text("utf-8")):
            first, _, last = tag.partition("..")
            stem, _, number = first.rpartition("-")
            for each in range(int(number), int(last or number) + 1):
                found.setdefault(f"{stem}-{each}", set()).add(str(path.relative_to(ROOT)))
    return found


def page() -> str:
    """Return the page as Markdown."""
    v5, v311 = rows()
    parts = [_HEAD]
    for title, table in (("MQTT 5.0", v5), ("MQTT 3.1.1", v311)):
        counts = {status: sum(row.status == status for row in table) for status in _STATUSES}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        parts.append(f"## {title}\n\n{len(table)} statements: {summary}.\n")
        parts.append("| number | what it asks | | proof |\n|---|---|---|---|")
        parts += [f"| {row.number} | {row.text} | {row.status} | {_proof(row)} |" for row in table]
        parts.append("")
    return "\n".join([*parts, _TAIL])


_STATUSES = ("met", "indirectly", "not")


def _proof(row: Row) -> str:
    if row.reason:
        return row.reason
    shown = [f"`{name}`" for name in row.tests[:_SHOWN]]
    more = len(row.tests) - len(shown)
    return "<br>".join(shown) + (f"<br>and {more} more" if more > 0 else "")


def _row(data: dict[str, dict[str, str]], version: str, number: str, text: str) -> Row:
    row = Row(number, text)
    row.reason = data[f"{version}-indirectly"].get(number, "")
    not_met = data.get(f"{version}-not", {}).get(number, "")
    if not_met:
        row.reason, row.deliberately_not = not_met, True
    return row


def _names(tests: list[Marked]) -> list[str]:
    """Return the names once each, raw bytes first."""
    names = dict.fromkeys(test.name for test in tests)
    return sorted(names, key=lambda name: not name.startswith("test_conformance_"))


def _numbers(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [
        argument.value.removeprefix("MQTT-")
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and ast.unparse(decorator.func) == "pytest.mark.conformance"
        for argument in decorator.args
        if isinstance(argument, ast.Constant)
    ]


def _data() -> dict[str, dict[str, str]]:
    return tomllib.loads((_TESTS / "conformance.toml").read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
