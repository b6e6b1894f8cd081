"""Which printer spells the tokens of a column. An encoder's affair.

A decoder follows what is defined in band, so everything here may change without a new version of
the format. A printer is chosen when it spells nine tokens of ten; the others will be escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge.structured.printers import DIGITS_MAX, Printer, PrinterKey, PrinterKind
from bridge.structured.texts import shared_prefix

__all__ = ["printer_for", "spells"]

_NUMBER = re.compile(rb"-?(\d+)(?:\.(\d+))?")
_STAMP = re.compile(rb"\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d(?:\.(\d+))?")
_CLOCK = re.compile(rb"(?:\d+([^\d:.+-]{1,8}))?(\d+):\d\d:\d\d")
_DIGITS = b"-0123456789."
_CORE = re.compile(rb"[-\d].*\d|\d", re.DOTALL)
_SHARE = 0.9  # of the tokens a printer must spell
_AFFIX_BYTES_MAX = 64


def printer_for(tokens: Sequence[bytes]) -> PrinterKey | None:
    """Return the spelling that most of `tokens` have in common, or None."""
    found = _decimal(tokens, b"", b"") or _time(tokens, b"", b"")
    if found is not None:
        return found
    prefix, suffix = _affixes(tokens)
    if not prefix and not suffix:
        return None
    if len(prefix) > _AFFIX_BYTES_MAX or len(suffix) > _AFFIX_BYTES_MAX:
        return None
    cores = [token[len(prefix) : len(token) - len(suffix)] for token in tokens]
    if not all(cores):
        return None
    return _decimal(cores, prefix, suffix) or _time(cores, prefix, suffix)


def _affixes(tokens: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return what all tokens begin and end with, up to the first and last digit."""
    prefix = suffix = tokens[0]
    for token in tokens:
        prefix = prefix[: shared_prefix(prefix, token)]
        end = shared_prefix(suffix[::-1], token[::-1])
        suffix = suffix[len(suffix) - end :]
    core = _CORE.search(tokens[0])
    if core is None:
        return b"", b""
    most = core.start(), len(tokens[0]) - core.end()
    return prefix[: most[0]].rstrip(_DIGITS), suffix[len(suffix) - min(most[1], len(suffix)) :]


def spells(key: PrinterKey, tokens: Sequence[bytes]) -> bool:
    """Return True when a printer spells nearly all of `tokens`."""
    parse = Printer(*key).parse_anew
    return sum(parse(token) is not None for token in tokens) >= _SHARE * len(tokens)


def _enough(key: PrinterKey, tokens: Sequence[bytes], prefix: bytes, suffix: bytes) -> bool:
    return spells(key, [prefix + token + suffix for token in tokens])


def _decimal(tokens: Sequence[bytes], prefix: bytes, suffix: bytes) -> PrinterKey | None:
    matches = [match for match in map(_NUMBER.fullmatch, tokens) if match]
    if len(matches) < _SHARE * len(tokens):
        return None
    wholes = [match.group(1) for match in matches]
    digits = sorted(len(match.group(2) or b"") for match in matches)
    common = digits[min(len(digits) - 1, int(len(digits) * 0.95))]
    candidates: list[tuple[int, int]] = []
    if digits[0] == common:
        candidates.append((PrinterKind.FIXED, common))
    else:
        candidates.append((PrinterKind.FLOATY, common))
        candidates.append((PrinterKind.TRIMMED, common))
        candidates.append((PrinterKind.FIXED, common))
    if (
        common == 0
        and len({len(whole) for whole in wholes}) == 1
        and any(len(whole) > 1 and whole[:1] == b"0" for whole in wholes)
    ):
        candidates.insert(0, (PrinterKind.PADDED, len(wholes[0])))
    for kind, wanted in candidates:
        key = (int(kind), min(wanted, DIGITS_MAX), b"", prefix, suffix)
        if _enough(key, tokens, prefix, suffix):
            return key
    return None


def _time(tokens: Sequence[bytes], prefix: bytes, suffix: bytes) -> PrinterKey | None:
    stamps = [match for match in map(_STAMP.fullmatch, tokens) if match]
    if len(stamps) >= _SHARE * len(tokens):
        digits = max(len(match.group(2) or b"") for match in stamps)
        for kind in (PrinterKind.STAMP, PrinterKind.STAMP_TRIMMED):
            key = (int(kind), min(digits, 9), stamps[0].group(1), prefix, suffix)
            if _enough(key, tokens, prefix, suffix):
                return key
        return None
    clocks = [match for match in map(_CLOCK.fullmatch, tokens) if match]
    if len(clocks) >= _SHARE * len(tokens):
        widths = min(len(match.group(2)) for match in clocks)
        key = (int(PrinterKind.CLOCK), min(widths, 2), clocks[0].group(1) or b"", prefix, suffix)
        if _enough(key, tokens, prefix, suffix):
            return key
    return None
