"""Framed templates: constant bytes in which lengths depend on the slots, as in protobuf.

docs/link-format-structured.md section 4.4. A fragment of a framed template is a series of items:
0x00 n and n bytes (n from 1 to 255) stand for themselves; 0x01 opens a part whose length is to be
written here, as a varint; 0x02 closes it. Parts nest over any number of fragments and slots.

Invariant: `assemble` takes time in proportion to what it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from bridge.kernel import varint
from bridge.structured.coder import refuse
from bridge.structured.kernel import native

__all__ = [
    "CLOSE",
    "OPEN",
    "Measured",
    "Step",
    "assemble",
    "check_marks",
    "literal_items",
]

_LITERAL, _OPEN, _CLOSE = 0, 1, 2
OPEN, CLOSE = b"\x01", b"\x02"
_DEPTH_MAX = 16
_KEPT_BYTES = 128  # longer fragments are read each time

Step = bytes | int  # bytes as they are, or _OPEN, or _CLOSE
Measured = tuple[list[Step], int, int, int]  # see `_measured`


def literal_items(data: bytes) -> bytes:
    """Return the items that stand for `data`."""
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"".join(bytes((_LITERAL, len(piece))) + piece for piece in pieces)


def _steps(fragment: bytes) -> list[Step]:
    """Return the items of a fragment; refuses what is none."""
    steps: list[Step] = []
    at = 0
    while at < len(fragment):
        mark = fragment[at]
        at += 1
        if mark in (_OPEN, _CLOSE):
            steps.append(mark)
            continue
        if mark != _LITERAL or at >= len(fragment):
            refuse("a framed fragment with an item that does not exist")
        end = at + 1 + fragment[at]
        if end > len(fragment) or end == at + 1:
            refuse("a framed fragment that is cut short")
        steps.append(fragment[at + 1 : end])
        at = end
    return steps


def _measured(fragment: bytes) -> Measured:
    """Return the items of a fragment, how deep it leads at least and at most, and behind it."""
    steps = _steps(fragment)
    depth = least = most = 0
    for step in steps:
        if step == _OPEN:
            depth += 1
            most = max(most, depth)
        elif step == _CLOSE:
            depth -= 1
            least = min(least, depth)
    return steps, least, most, depth


_kept = lru_cache(4096)(_measured)


def check_marks(
    fragments: Sequence[bytes], known: dict[bytes, Measured] | None = None
) -> list[list[Step]]:
    """Return the steps of a framed template's fragments; refuses parts that do not nest.

    Nobody changes the steps: many templates may have the same.

    Args:
        fragments: They.
        known: What a family's fragments were found to be; added to. Its thousands of templates
            may each have its largest fragment hundreds of times: it is read and held once.
    """
    depth = 0
    known = {} if known is None else known
    for fragment in dict.fromkeys([one for one in fragments if one not in known]):
        short = len(fragment) <= _KEPT_BYTES
        known[fragment] = _kept(fragment) if short else _measured(fragment)
    parsed = [known[fragment] for fragment in fragments]
    for _, least, most, change in parsed:
        if depth + least < 0 or depth + most > _DEPTH_MAX:
            refuse("framed parts that do not nest")
        depth += change
    if depth:
        refuse("a framed part that is never closed")
    return [measured[0] for measured in parsed]


def _assemble(fragments: list[list[Step]], tokens: tuple[bytes, ...]) -> bytes:
    """Return the payload of a framed template: its fragments with `tokens` between."""
    parts: list[bytes] = []
    outer: list[list[bytes]] = []
    last = len(tokens)
    for place, steps in enumerate(fragments):
        for step in steps:
            if isinstance(step, bytes):
                parts.append(step)
            elif step == _OPEN:
                outer.append(parts)
                parts = []
            else:
                inner = b"".join(parts)
                parts = outer.pop()
                parts += (varint(len(inner)), inner)
        if place < last:
            parts.append(tokens[place])
    return b"".join(parts)


assemble = native.assemble if native else _assemble
