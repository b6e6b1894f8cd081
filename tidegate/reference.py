"""docs/configuration.md, made from the declarations themselves; a test compares the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.config import Key, keys

__all__ = ["configuration_page"]

_HEAD = """\
# Configuration

Made by `tidegate docs` from the declarations in the code; a test fails when it is out of date.

Every key can be set in a TOML file (`-c FILE`), by an environment variable, or by a flag; later
ones win: defaults, file, environment, flags. The variable is `TIDEGATE_` and the key's path in
upper case with `_` for the dots; the flag is the path with `-`. A size in bytes may be written
`"64MiB"`; a list in a variable or flag is separated by commas, tables there are written as a TOML
array. `tidegate check -c FILE` says what is wrong with a file, all of it, a line each.
"""


def configuration_page(commands: Mapping[str, type]) -> str:
    """Return the page as Markdown.

    Args:
        commands: Configuration dataclass by the command that reads it.
    """
    parts = [_HEAD]
    for command, cls in commands.items():
        parts.append(f"## `tidegate {command}`\n")
        parts.append(_table([key for key in keys(cls) if len(key.path) == 1]))
        for key in keys(cls):
            if key.kind == "section":
                inner = [k for k in keys(cls) if k.path[:-1] == key.path]
                parts.append(f"### `[{key.name}]`\n\n{key.metadata['help']}\n")
                parts.append(_table(inner))
            elif key.kind == "tables":
                parts.append(f"### `[[{key.name}]]`\n\n{key.metadata['help']}\n")
                parts.append(_table(list(keys(key.metadata["cls"]))))
    return "\n".join(parts)


def _table(rows: list[Key]) -> str:
    lines = ["| key | what it must be | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{key.path[-1]}` | {_cell(key.expected)} | {_default(key)} "
        f"| {_cell(key.metadata['help'])} |"
        for key in rows
        if key.kind == "setting"
    ]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _default(key: Key) -> str:
    value: Any = key.default
    if value is dataclasses.MISSING:
        return "required"
    if value in ("", None, ()):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    return f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
