"""Shapes of payloads: where the constant text ends and a slot begins. An encoder's affair only.

Whatever is found here is proven by putting it together again, so a shape may misread a payload as
it likes and nothing is lost. JSON is split at its scalars, however it is spaced, ordered or
spelled; a payload that is one number, time or word is a slot alone; other text is split at its
numbers and times; protobuf at its fields (`protobuf`). Everything is one linear pass in C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from bridge.structured.kernel import native
from bridge.structured.printers import PrinterKey

__all__ = ["Matcher", "Path", "Shape", "matcher", "shape_of"]

Path = tuple[object, ...]
Matcher = Callable[[bytes], "tuple[bytes, ...] | None"]

# A string is matched to its end or, when it has none, to the payload's end: never scanned twice.
_STRING = rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_BARE = rb'([^\s"\[\]{},:]++)'
_KEY = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*+:'
_JSON = re.compile(
    rb"((?:[\[\]{},:\s]++|" + _KEY + rb")*+)(?:" + _STRING + rb"|" + _BARE + rb')|".*+',
    re.DOTALL,
)
_MARK = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"\s*+:|[\[\]{},]', re.DOTALL)
_STAMP = rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d++)?+"
_NUMBER = rb"[-+]?+\d++(?:\.\d++)?+(?:[eE][-+]?+\d++)?+"
_IN_TEXT = re.compile(
    rb"(?<![\w.])((?>" + _STAMP + rb"|\d++:\d\d:\d\d|" + _NUMBER + rb"))(?![\w.]*\d)"
)
_LABEL = re.compile(rb"[^\s,;|&]+\s*")
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
    names: tuple[Path, ...] = ()  # of the tokens' fields, if the fragments do not tell
    printers: tuple[PrinterKey | None, ...] = ()  # how the tokens are spelled, if that is known,
    by_name: Mapping[object, PrinterKey] | None = None  # or follows from what a name ends with
    widths: tuple[int, ...] = ()  # of the tokens of a frame

    @property
    def key(self) -> object:
        """What shapes of one template have in common."""
        return self.widths or (self.framed, self.fragments)

    @classmethod
    def of(cls, fragments: tuple[bytes, ...], *, framed: bool) -> Shape | None:
        """Return the shape that has these fragments, without tokens; None if they do not tell."""
        if framed:
            return None
        if len(fragments) > 2 and not any(fragments):
            return None
        if fragments == (b"", b""):
            kind = "scalar"
        else:
            kind = "json" if fragments[0].lstrip()[:1] in (b"{", b"[") else "text"
        return cls(fragments, (), kind, framed)

    def printer_of(self, slot: int) -> PrinterKey | None:
        """Return how the tokens of a slot are spelled, if that is known."""
        if self.by_name is not None:
            return self.by_name.get(self.names[slot][-1])
        return self.printers[slot] if self.printers else None

    def paths(self, spelled: object) -> list[Path]:
        """Return a name for each token's field, all different, `spelled` telling apart further."""
        names: Sequence[object] = self.names
        if self.kind == "json":
            names = _json_paths(self.fragments)
        elif not names:
            names = [_label(fragment) for fragment in self.fragments[:-1]]
        kind = self.kind
        if len(set(names)) == len(names):
            return [(kind, name, 1, spelled) for name in names]
        seen: dict[object, int] = {}
        paths: list[Path] = []
        for name in names:
            turn = seen[name] = seen.get(name, 0) + 1
            paths.append((kind, name, turn, spelled))
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


def matcher(shape: Shape) -> Matcher:
    """Return a function that returns the tokens of payloads of the same shape, else None."""
    if native is not None:
        return partial(native.match_shape, shape.fragments, shape.kind == "json")
    return _matcher(shape)


def _matcher(shape: Shape) -> Matcher:
    parts: list[bytes] = []
    for fragment in shape.fragments[:-1]:
        parts.append(re.escape(fragment))
        if shape.kind == "json":
            string = fragment.endswith(b'"')
            parts.append(rb'([^"\\]*+(?:\\.[^"\\]*+)*+)' if string else _BARE)
        else:
            parts.append(rb"((?>" + _STAMP + rb"|\d++:\d\d:\d\d|" + _NUMBER + rb"))")
    parts.append(re.escape(shape.fragments[-1]))
    match = re.compile(b"".join(parts), re.DOTALL).fullmatch

    def tokens_of(payload: bytes) -> tuple[bytes, ...] | None:
        found = match(payload)
        return None if found is None else found.groups()

    return tokens_of


def _json_shape(payload: bytes) -> Shape | None:
    found = native.split_json(payload) if native else None
    found = found or _split_json(payload)
    return None if found is None else Shape(found[0], found[1], "json")


def _split_json(payload: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]] | None:
    """Return the fragments and tokens of JSON, None for what does not read as such."""
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
    return tuple(fragments), tuple(tokens)


def _json_paths(fragments: tuple[bytes, ...]) -> list[object]:
    """Return the key path of each slot: member names and array places from the root."""
    paths: list[object] = []
    stack: Path = ()
    string = False
    for fragment in fragments[:-1]:
        stack = _json_step(stack, fragment[string:])
        string = fragment.endswith(b'"')
        paths.append(stack)
    return paths


@lru_cache(4096)
def _json_step(stack: Path, fragment: bytes) -> Path:
    """Return where a fragment leads from `stack`: the key or place in each open container."""
    text = fragment[:-1] if fragment.endswith(b'"') else fragment
    levels = list(stack)
    for mark in _MARK.finditer(text):
        sign = mark.group()
        if sign == b"{":
            levels.append(None)
        elif sign == b"[":
            levels.append(0)
        elif sign in (b"}", b"]"):
            if levels:
                levels.pop()
        elif not levels:
            continue
        elif sign != b",":
            levels[-1] = mark.group(1)
        elif isinstance(levels[-1], int):
            levels[-1] += 1
    return tuple(levels)


def _label(fragment: bytes) -> bytes:
    """Return the last word of a fragment with its signs: what probably names the number behind."""
    words = _LABEL.findall(fragment)
    return words[-1] if words else fragment


def _text_shape(payload: bytes) -> Shape | None:
    parts = _IN_TEXT.split(payload)
    if len(parts) < 3:
        return None
    return Shape(tuple(parts[::2]), tuple(parts[1::2]), "text")
