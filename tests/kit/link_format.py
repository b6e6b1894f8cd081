"""The worked examples of docs/link-format.md, as bytes."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["example"]

DOC = Path(__file__).parents[2] / "docs" / "link-format.md"


def example(name: str) -> bytes:
    """Return the bytes of one example of the document: hex up to the first word that is none."""
    block = re.search(rf"```hex {name}\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
    assert block is not None
    found = bytearray()
    for line in block[1].splitlines():
        for word in line.split():
            if not re.fullmatch(r"(?:[0-9a-f]{2})+", word):
                break
            found += bytes.fromhex(word)
    return bytes(found)
