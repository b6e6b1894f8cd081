"""Where a value is in a payload: dotted paths into JSON, and what counts as a number.

Alerts and queries share this, so that a rule sees the very values a query shows.

    temperature             a key
    sensors[0].temp         an index, from the end when negative
    ["odd.key"].value       a key with dots, quoted as in JSON
    (empty)                 the whole payload

A leading `$` or `$.` is allowed. `a.0` finds index 0 of a list and key "0" of an object.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final

__all__ = ["MISSING", "FieldError", "FieldPath", "json_document", "number"]

_STEP = re.compile(r'\.?([^.\[\]"]+)|\[(-?\d{1,9})\]|\.?\[("(?:[^"\\]|\\.)*")\]')
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
STEPS_MAX = 32


class FieldError(ValueError):
    """A path that cannot be read; `str()` says which and why."""


class _Missing:
    """The value of a field that is not there; unlike None, which JSON has."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


class FieldPath:
    """A path into JSON documents.

    Attributes:
        text: The path as it was written.
    """

    __slots__ = ("_steps", "text")

    def __init__(self, text: str, steps: tuple[str | int, ...]) -> None:
        self.text = text
        self._steps = steps

    @classmethod
    def parse(cls, text: str) -> FieldPath:
        """Read a path.

        Raises:
            FieldError: it is no path.
        """
        steps: list[str | int] = []
        rest = text.strip()
        rest = rest[1:] if rest[:1] == "$" else rest
        at = 0
        while at < len(rest):
            match = _STEP.match(rest, at)
            if match is None or (at == 0 and rest[0] == "." and text.strip()[0] != "$"):
                raise FieldError(f"'{text}' is no path at '{rest[at:]}'; expected like a.b[0].c")
            key, index, quoted = match.groups()
            steps.append(int(index) if index else json.loads(quoted) if quoted else key)
            at = match.end()
        if len(steps) > STEPS_MAX:
            raise FieldError(f"'{text[:40]}...' has {len(steps)} steps; at most {STEPS_MAX}")
        return cls(text, tuple(steps))

    def find(self, payload: bytes | str) -> object:
        """Return the value in a payload as JSON has it, or MISSING.

        With an empty path: the document when the payload is JSON, else its text when it is UTF-8.
        """
        return self.find_in(payload, json_document(payload))

    def find_in(self, payload: bytes | str, document: object) -> object:
        """As `find`, for a payload whose `json_document` is known: one parse for many paths."""
        if document is MISSING:
            return MISSING if self._steps else _text(payload)
        return self.of(document)

    def of(self, document: object) -> object:
        """Return the value in a parsed document, or MISSING."""
        value = document
        for step in self._steps:
            if isinstance(value, dict):
                value = value.get(str(step), MISSING)
            elif isinstance(value, list):
                try:
                    value = value[int(step)]
                except (ValueError, IndexError):
                    return MISSING
            else:
                return MISSING
        return value


def json_document(payload: bytes | str) -> object:
    """Return the payload's JSON document, or MISSING when it is none."""
    try:
        # as text: json.loads would first guess the encoding of bytes
        document: object = json.loads(payload if isinstance(payload, str) else payload.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return MISSING
    return document


def number(value: object) -> float | None:
    """Return a value as a finite number, or None.

    Numbers, booleans (1 and 0) and texts that are a decimal number, spaces around it allowed.
    """
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 64 or not _NUMBER.fullmatch(text):
            return None
        value = float(text)
    if not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def _text(payload: bytes | str) -> object:
    if isinstance(payload, str):
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return MISSING
