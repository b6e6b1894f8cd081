"""A small certificate authority for people who have none: X.509 by the cryptography package.

Keys are ECDSA P-256, which small boards sign with quickly. A certificate's common name is what the
broker calls a client (%n in rules); a server's addresses are its alternative names. Keys are
readable by their owner alone, and no file is written over. RFC 5280.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority", "CertificateError", "name_fault"]

CA_DAYS = 3650
_CLOCK_SLACK = dt.timedelta(minutes=5)  # a board's clock may be behind


class CertificateError(Exception):
    """A file that is there or is not, or a name that cannot be one; `str()` is one line."""


def name_fault(name: str) -> str:
    """Return why a name cannot be a certificate's; empty when it can."""
    if not 0 < len(name) <= 64:
        return "a name has 1 to 64 characters"
    if any(sign in name for sign in "/+#\0") or not name.isprintable() or name.startswith("."):
        return "a name has no '/', '+', '#' and control characters, and does not begin with '.'"
    return ""


@dataclass(frozen=True)
class Authority:
    """A folder with `ca.pem`, `ca.key`, `ca.crl`, and what was made under it."""

    folder: Path

    def create(self, name: str, days: int = CA_DAYS) -> list[Path]:
        """Make the authority and an empty list of revocations; return the files."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        certificate = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        self._write_key("ca.key", key)
        self._write("ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return [self.folder / "ca.pem", self.folder / "ca.key", self._write_crl(certificate, key)]

    def server(self, name: str, hosts: Sequence[str], days: int) -> list[Path]:
        """Make a server's certificate for these names and addresses; return the files."""
        names = [_alternative(host) for host in hosts or [name]]
        return self._issue(name, names, [ExtendedKeyUsageOID.SERVER_AUTH], days)

    def client(self, name: str, days: int) -> list[Path]:
        """Make a gateway's or device's certificate; return the files."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:tidegate:{name}")]
        return self._issue(name, names, [ExtendedKeyUsageOID.CLIENT_AUTH], days)

    def revoke(self, name: str) -> Path:
        """Put a certificate on the list of revocations; return the list's file."""
        certificate, key = self._load()
        revoked = self._load_certificate(f"{name}.pem").serial_number
        return self._write_crl(certificate, key, [*self._revoked(), revoked])

    def _issue(
        self,
        name: str,
        names: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        days: int,
    ) -> list[Path]:
        certificate, ca_key = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        issued = (
            _builder(_name(name), certificate.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        self._write_key(f"{name}.key", key)
        pem = issued.public_bytes(serialization.Encoding.PEM)
        self._write(f"{name}.pem", pem, 0o644)
        return [self.folder / f"{name}.pem", self.folder / f"{name}.key"]

    # -- files --------------------------------------------------------------------------------

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        certificate = self._load_certificate("ca.pem")
        try:
            data = (self.folder / "ca.key").read_bytes()
            key = serialization.load_pem_private_key(data, None)
        except (OSError, ValueError) as error:
            raise CertificateError(f"{self.folder / 'ca.key'}: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{self.folder / 'ca.key'} is not a key of ours")
        return certificate, key

    def _load_certificate(self, file: str) -> x509.Certificate:
        path = self.folder / file
        try:
            return x509.load_pem_x509_certificate(path.read_bytes())
        except FileNotFoundError:
            hint = (
                "make the authority first: tidegate certs ca" if file == "ca.pem" else "see --dir"
            )
            raise CertificateError(f"{path} is not there; {hint}") from None
        except (OSError, ValueError) as error:
            raise CertificateError(f"{path}: {error}") from None

    def _revoked(self) -> list[int]:
        path = self.folder / "ca.crl"
        if not path.exists():
            return []
        return [each.serial_number for each in x509.load_pem_x509_crl(path.read_bytes())]

    def _write_crl(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        serials: Sequence[int] = (),
    ) -> Path:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(certificate.subject)
            .last_update(now - _CLOCK_SLACK)
            .next_update(certificate.not_valid_after_utc)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
            .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        )
        for serial in dict.fromkeys(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        path = self.folder / "ca.crl"
        new = path.with_suffix(".crl.new")
        new.write_bytes(pem)
        new.replace(path)
        return path

    def _write_key(self, file: str, key: ec.EllipticCurvePrivateKey) -> None:
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._write(file, pem, 0o600)

    def _write(self, file: str, data: bytes, mode: int) -> None:
        path = self.folder / file
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise CertificateError(
                f"{path} is there already and is not written over; move it away for a new one"
            ) from None
        except OSError as error:
            raise CertificateError(f"{path}: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
