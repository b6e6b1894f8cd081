"""What has to be known of certificate files before they are used: times, issuers, order.

`ssl` loads a certificate that has expired, and a chain whose end is missing, without a word; it is
the clients that turn away then. So the little that matters is read from the DER encoding: RFC 5280,
section 4.1, and X.690. What cannot be read so is left to `ssl` to judge.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

__all__ = ["Certificate", "chain_fault", "read_chain", "time_fault", "with_issuers"]

_PEM: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.ASCII | re.DOTALL
)
_VERSION: Final = 0xA0  # [0] EXPLICIT, left out in version 1
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


@dataclass(slots=True, frozen=True)
class Certificate:
    """What is read of one certificate; names are their DER bytes, to be compared."""

    issuer: bytes
    subject: bytes
    not_after: datetime


def read_chain(file: Path) -> list[Certificate]:
    """Return the certificates of a PEM file in order, those that can be read."""
    return [certificate for _, certificate in _read(file)]


def with_issuers(file: Path, authorities: Path) -> bytes:
    """Return the chain to send of a PEM file with nothing but the server's own certificate.

    It is what OpenSSL sends too. But OpenSSL looks for it and verifies it in each handshake, a
    quarter of a handshake's work, unless it is given a chain (docs/adr/0014-tls-transport.md).

    Args:
        file: The server's certificate.
        authorities: PEM file of those it may be from.

    Returns:
        PEM; b"" when the file has a chain, or no issuer is found, or a name stands for several.
    """
    own = _read(file)
    if len(own) != 1:
        return b""
    issuers: dict[bytes, tuple[bytes, Certificate]] = {}
    for block, certificate in _read(authorities):
        if certificate.subject in issuers:
            return b""
        issuers[certificate.subject] = block, certificate
    chain, last = own[0]
    has_issuers = False
    while last.issuer != last.subject and last.issuer in issuers:
        block, last = issuers.pop(last.issuer)
        chain += b"\n" + block
        has_issuers = True
    return chain if has_issuers else b""


def _read(file: Path) -> list[tuple[bytes, Certificate]]:
    """Return PEM and contents of the certificates of a file in order, those that can be read."""
    found = []
    for block in _PEM.findall(file.read_bytes()):
        try:
            certificate = _certificate(ssl.PEM_cert_to_DER_cert(block.decode("ascii")))
        except (ValueError, IndexError):
            continue
        found.append((block, certificate))
    return found


def time_fault(chain: Sequence[Certificate], now: datetime) -> str:
    """Return which certificate of a chain has expired; "" when none has.

    One that is not valid yet is no fault: a gateway's clock may not be set when it starts.
    """
    for place, certificate in enumerate(chain, 1):
        if certificate.not_after < now:
            when = f"{certificate.not_after:%Y-%m-%d %H:%M} UTC"
            return (
                f"it has expired on {when}" if place == 1 else f"number {place} expired on {when}"
            )
    return ""


def chain_fault(chain: Sequence[Certificate], before: Sequence[Certificate]) -> str:
    """Return what a chain lacks that the one before it had for the same issuer; "" for nothing."""
    if not chain:
        return ""
    last = chain[-1]
    known = {certificate.subject for certificate in before[1:]}
    if last.issuer != last.subject and last.issuer in known:
        return "the certificate of the issuer, which the file had before, is missing: cut short?"
    return ""


def _certificate(der: bytes) -> Certificate:
    """Read a certificate; ValueError or IndexError when it is not what RFC 5280 has."""
    body = _parts(_parts(der)[0][1])  # Certificate -> its three parts
    fields = [field for field in _parts(body[0][1]) if field[0] != _VERSION]
    _serial, _algorithm, issuer, validity, subject = fields[:5]
    _not_before, not_after = _parts(validity[1])
    return Certificate(issuer[1], subject[1], _time(*not_after))


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """Return tag and contents of the DER values that lie end to end."""
    parts = []
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length >= 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise ValueError("cut short")
        parts.append((tag, data[at : at + length]))
        at += length
    return parts


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280, 4.1.2.5.1: years 1950 to 2049
        text = ("20" if text[:2] < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
