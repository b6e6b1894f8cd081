"""The errors of the link; `str()` of each is one line an operator can act on."""

from __future__ import annotations

__all__ = ["BatchError", "LinkError"]


class LinkError(Exception):
    """Something the peer on the link did, or that happened to the link."""


class BatchError(LinkError):
    """A batch that must be refused: nothing of it may be used.

    Attributes:
        reason: One of the reason words of docs/link-format.md section 6, such as "check".
        detail: What was found, without any byte of a payload.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    @property
    def is_newer(self) -> bool:
        """True when it may be whole and written by a version after this one."""
        return self.reason in ("version", "extension", "mode")
