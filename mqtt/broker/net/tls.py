"""TLS of a listener: contexts made from files and made anew when the files change.

A new context serves new connections; those that are open keep theirs. Files that cannot be used
change nothing, half-written ones, expired ones and chains cut short among them: the last good
context stays, and one line says so for each state of the files. PAINS P20.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from mqtt.broker.net.certificates import (
    Certificate,
    chain_fault,
    read_chain,
    time_fault,
    with_issuers,
)
from mqtt.broker.net.config import ListenerConfig

__all__ = ["ServerTls", "TlsError", "certificate_name", "file_signature", "server_context"]

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_MODES: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}

Signature = tuple[tuple[int, int, int] | None, ...]


class TlsError(Exception):
    """Certificate files that cannot be used; `str()` is one line that names the file."""


def file_signature(*files: Path | None) -> Signature:
    """Return what changes when a file is written or replaced; None for one that is not there."""
    return tuple(_stat(file) for file in files)


def _stat(file: Path | None) -> tuple[int, int, int] | None:
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def server_context(config: ListenerConfig) -> ssl.SSLContext:
    """Return the context of a listener.

    Raises:
        TlsError: a file cannot be read or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[config.tls_minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # One is enough for a client that comes back, which is given another; each is a write.
    context.num_tickets = 1
    context.set_alpn_protocols(["http/1.1"] if config.websocket else ["mqtt"])
    assert config.tls_cert_file is not None
    _load(context, config.tls_cert_file, config.tls_key_file)
    if config.tls_ca_file is not None:
        _trust(context, config.tls_ca_file, "authorities")
        _load_issuers(context, config.tls_cert_file, config.tls_key_file, config.tls_ca_file)
    if config.tls_crl_file is not None:
        _trust(context, config.tls_crl_file, "revocations")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    context.verify_mode = _MODES[config.client_certificate]
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    for file in (cert, key):
        _readable(file)
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        raise TlsError(
            f"certificate {cert} with key {key or cert} cannot be used: {_reason(error)}"
        ) from None


def _load_issuers(context: ssl.SSLContext, cert: Path, key: Path | None, ca: Path) -> None:
    """Have the issuers of a lone certificate sent without looking for them in each handshake."""
    chain = with_issuers(cert, ca)
    if not chain:
        return
    with contextlib.suppress(OSError), NamedTemporaryFile(suffix=".pem") as file:
        file.write(chain)  # `ssl` takes certificates from files only
        file.flush()
        context.load_cert_chain(file.name, key or cert, password="")


def _trust(context: ssl.SSLContext, file: Path, what: str) -> None:
    _readable(file)
    try:
        context.load_verify_locations(file)
    except OSError as error:
        raise TlsError(f"{what} {file} cannot be used: {_reason(error)}") from None


def _readable(file: Path | None) -> None:
    """Raise TlsError when a file cannot be read, which ssl's own errors would not name."""
    if file is None:
        return
    try:
        with file.open("rb"):
            return
    except OSError as error:
        raise TlsError(f"{file} cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error)


class ServerTls:
    """The current context of one listener.

    Args:
        config: Names the files.
        now: Wall clock.

    Raises:
        TlsError: the files cannot be used.
    """

    def __init__(
        self, config: ListenerConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._config = config
        self._now = now
        self._seen = self._signature()
        self.context = server_context(config)
        self._chain = _chain(config)
        self.fault = time_fault(self._chain, now())  # what is wrong with them although they load

    def refresh(self, config: ListenerConfig | None = None) -> bool:
        """Make the context anew if files have changed since the last look; return whether.

        Args:
            config: Other settings than before; None: the same.

        Raises:
            TlsError: they changed, and cannot be used: the context of before stays. Told once for
                each state of the files.
        """
        changed = config is not None and config != self._config
        wanted = config or self._config
        seen = _signature(wanted)
        if seen == self._seen and not changed:
            return False
        self._seen = seen  # looked at before they are read: a later change is seen next time
        context = server_context(wanted)
        chain = _chain(wanted)
        same_file = wanted.tls_cert_file == self._config.tls_cert_file
        fault = time_fault(chain, self._now()) or (
            chain_fault(chain, self._chain) if same_file else ""
        )
        if fault:
            raise TlsError(f"certificate {wanted.tls_cert_file}: {fault}")
        self.context, self._chain, self.fault = context, chain, ""
        self._config = wanted
        return True

    def _signature(self) -> Signature:
        return _signature(self._config)


def _chain(config: ListenerConfig) -> list[Certificate]:
    assert config.tls_cert_file is not None
    return read_chain(config.tls_cert_file)


def _signature(config: ListenerConfig) -> Signature:
    return file_signature(
        config.tls_cert_file, config.tls_key_file, config.tls_ca_file, config.tls_crl_file
    )


def certificate_name(certificate: dict[str, Any] | None, kind: str) -> str | None:
    """Return the name of a verified certificate; None when it has none or there is none.

    Args:
        certificate: As `SSLObject.getpeercert()` returns it.
        kind: "cn", the last common name of the subject; "san", the first alternative name.
    """
    if not certificate:
        return None
    if kind == "san":
        names = certificate.get("subjectAltName", ())
        return str(names[0][1]) if names else None
    found = None
    for relative in certificate.get("subject", ()):
        for key, value in relative:
            if key == "commonName":
                found = str(value)
    return found
