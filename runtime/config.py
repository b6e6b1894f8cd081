"""Configuration, declared once as frozen dataclasses and loaded from TOML, environment and flags.

A key is declared with `setting()` in a frozen dataclass; a nested table with `section()`; an array
of tables with `tables()`. That one declaration gives the TOML key, the environment variable
(`TIDEGATE_` + the key's path, upper case, `_` between), the flag (`--path-to-key`), the check of
type and bounds, and the row in docs/configuration.md. Later sources win: defaults, file,
environment, flags.
"""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["ConfigError", "section", "setting", "tables"]


class ConfigError(Exception):
    """A configuration that cannot be used; `str()` is one line: where, what, what to do."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002 - the word argparse uses too
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    flag: str = "",
    secret: bool = False,
) -> Any:
    """Declare one key of a configuration dataclass.

    Args:
        default: The value when no source gives one; without it the key is required.
        help: One sentence for `--help` and the reference page.
        unit: The unit of a number, also the last part of the key's name (`ms`, `bytes`, `s`).
        minimum: The least value allowed.
        maximum: The greatest value allowed.
        choices: The only texts allowed.
        flag: A short flag such as `--data`; the long one made from the path works as well.
        secret: Never printed or logged.
    """
    metadata = {
        "kind": "setting",
        "help": help,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "flag": flag,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, *, help: str) -> Any:  # noqa: A002
    """Declare a nested table whose keys are the settings of dataclass `cls`."""
    return dataclasses.field(default_factory=cls, metadata={"kind": "section", "help": help})


def tables(cls: type, *, help: str) -> Any:  # noqa: A002
    """Declare an array of tables; the field's type is `tuple[cls, ...]`, its default is empty."""
    return dataclasses.field(default=(), metadata={"kind": "tables", "cls": cls, "help": help})
