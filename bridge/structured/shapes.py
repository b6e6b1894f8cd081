"""Shapes of payloads: where the constant text ends and a slot begins. An encoder's affair only.

Whatever is found here is proven by putting it together again, so a shape may misread a payload as
it likes and nothing is lost. JSON is split at its scalars, however it is spaced, ordered or
spelled; a payload that is one number, time or word is a slot alone; other text is split at its
numbers and times; protobuf at its fields (`protobuf`). Everything is one linear pass in C.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Path", "Shape", "matcher", "shape_of"]

Path = tuple[object, ...]

_SPACE = rb"\s"
# A string is matched to its end or, when it has none, to the payload's end: never scanned twice.
_STRING = rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_BARE = rb'([^\s"\[\]{},:]++)'
_KEY = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*+:'
_JSON = re.compile(
    rb"((?:[\[\]{},:\s]++|" + _KEY + rb")*+)(?:" + _STRING + rb"|" + _BARE + rb')|"[^\0]*+',
    re.DOTALL,
)
_MARK = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"\s*+:|[\[\]{},]', re.DOTALL)
_STAMP = rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d++)?+"
_NUMBER = rb"[-+]?+\d++(?:\.\d++)?+(?:[eE][-+]?+\d++)?+"
_IN_TEXT = re.compile(
    rb"(?<![\w.])((?>" + _STAMP + rb"|\d++:\d\d:\d\d|" + _NUMBER + rb"))(?![\w.]*\d)"
)
_SCALAR = re.compile(rb"(?:" + _STAMP + rb"|" + _NUMBER + rb"|[\w.:+-]{1,32})")
_TEXT_BYTES = bytes((9, 10, 13, *range(32, 127), *range(128, 256)))


@dataclass(slots=True)
class Shape:
    """A payload taken apart: fragment, token, fragment, …, fragment.

    `paths` names the tokens' fields: what templates of one family have in common.
    """

    fragments: tuple[bytes, ...]
    tokens: tuple[bytes, ...]
    kind: str  # "json", "scalar", "text", "protobuf" or "frame"
    framed: bool = False

    @classmethod
    def of(cls, fragments: tuple[bytes, ...], *, framed: bool) -> Shape:
        """Return the shape that has these fragments; its tokens are not known."""
        if framed:
            kind = "protobuf"
        elif fragments == (b"", b""):
            kind = "scalar"
        else:
            kind = "json" if fragments[0].lstrip()[:1] in (b"{", b"[") else "text"
        return cls(fragments, (), kind, framed)

    def paths(self) -> list[Path]:
        """Return a name for each token's field, all different."""
        names = _json_paths(self.fragments) if self.kind == "json" else list(self.fragments[:-1])
        seen: dict[object, int] = {}
        paths: list[Path] = []
        for name in names:
            turn = seen[name] = seen.get(name, 0) + 1
            paths.append((self.kind, name, turn))
        return paths


def shape_of(payload: bytes) -> Shape | None:
    """Return the shape of a payload, or None when nothing in it looks like a field."""
    if payload[:1] in (b"{", b"[") or payload[:8].lstrip()[:1] in (b"{", b"["):
        shape = _json_shape(payload)
        if shape is not None:
            return shape
    if _SCALAR.fullmatch(payload):
        return Shape((b"", b""), (payload,), "scalar")
    if payload and not payload.translate(None, _TEXT_BYTES):
        return _text_shape(payload)
    return None


def matcher(shape: Shape) -> Callable[[bytes], re.Match[bytes] | None]:
    """Return a function that matches payloads of the same shape, its groups being the tokens."""
    parts: list[bytes] = []
    for fragment in shape.fragments[:-1]:
        parts.append(re.escape(fragment))
        if shape.kind == "json":
            string = fragment.endswith(b'"')
            parts.append(rb'([^"\\]*+(?:\\.[^"\\]*+)*+)' if string else _BARE)
        else:
            parts.append(rb"((?>" + _STAMP + rb"|\d++:\d\d:\d\d|" + _NUMBER + rb"))")
    parts.append(re.escape(shape.fragments[-1]))
    return re.compile(b"".join(parts), re.DOTALL).fullmatch


def _json_shape(payload: bytes) -> Shape | None:
    fragments: list[bytes] = []
    tokens: list[bytes] = []
    quote = b""
    size = 0
    for literal, string, bare in _JSON.findall(payload):
        if bare:
            fragments.append(quote + literal)
            tokens.append(bare)
            quote = b""
            size += len(literal) + len(bare)
        else:
            fragments.append(quote + literal + b'"')
            tokens.append(string)
            quote = b'"'
            size += len(literal) + len(string) + 2
    fragments.append(quote + payload[size:])
    if not tokens or b"".join([*map(b"".join, zip(fragments, tokens)), fragments[-1]]) != payload:  # noqa: B905 - fragments has one more
        return None
    return Shape(tuple(fragments), tuple(tokens), "json")


def _json_paths(fragments: tuple[bytes, ...]) -> list[object]:
    """Return the key path of each slot: member names and array places from the root."""
    paths: list[object] = []
    stack: list[list[object]] = []
    string = False
    for fragment in fragments[:-1]:
        text = fragment[string:]
        string = fragment.endswith(b'"')
        if string:
            text = text[:-1]
        for mark in _MARK.finditer(text):
            sign = mark.group()
            if sign == b"{":
                stack.append([None])
            elif sign == b"[":
                stack.append([0])
            elif sign in (b"}", b"]"):
                if stack:
                    stack.pop()
            elif not stack:
                continue
            elif sign != b",":
                stack[-1][0] = mark.group(1)
            elif isinstance(stack[-1][0], int):
                stack[-1][0] += 1
        paths.append(tuple(level[0] for level in stack))
    return paths


def _text_shape(payload: bytes) -> Shape | None:
    parts = _IN_TEXT.split(payload)
    if len(parts) < 3:
        return None
    return Shape(tuple(parts[::2]), tuple(parts[1::2]), "text")
