"""SCRAM-SHA-256, the server's side: RFC 5802 and RFC 7677, without channel binding.

The server keeps for each user a salt, a number of iterations, StoredKey and ServerKey, from which
the password cannot be had back and with which nobody can log in elsewhere; a step costs two HMACs.
A user that does not exist gets a salt all the same, so that names cannot be found out.

A file of such users has the lines of PostgreSQL and RFC 5803:

    alice:SCRAM-SHA-256$10000:<salt>$<StoredKey>:<ServerKey>        in base64
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mqtt.broker.access.enhanced import AuthRefusedError, AuthStep
from mqtt.broker.access.passwords import PasswordFileError, read_users
from mqtt.broker.net.tls import Signature, file_signature
from mqtt.broker.seams import ClientInfo
from mqtt.reason_codes import ReasonCode

__all__ = ["ScramCredentials", "ScramExchange", "ScramSha256", "scram_credentials"]

ITERATIONS: Final = 10_000
_ITERATIONS_MIN, _ITERATIONS_MAX = 4096, 10_000_000  # RFC 7677 section 4
_SALT_BYTES, _NONCE_BYTES, _MESSAGE_BYTES_MAX = 16, 18, 4096
_SCHEME: Final = "SCRAM-SHA-256"


@dataclass(slots=True, frozen=True)
class ScramCredentials:
    """What the server knows of a user."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes

    def __str__(self) -> str:
        keys = f"{_base64(self.stored_key)}:{_base64(self.server_key)}"
        return f"{_SCHEME}${self.iterations}:{_base64(self.salt)}${keys}"

    @classmethod
    def parse(cls, text: str) -> ScramCredentials:
        """Return the credentials of a line; raises ValueError."""
        try:
            scheme, first, second = text.split("$")
            iterations, salt = first.split(":")
            stored, server = second.split(":")
            parsed = cls(_bytes(salt), int(iterations), _bytes(stored), _bytes(server))
        except (ValueError, binascii.Error):
            raise ValueError(
                f"expected user:{_SCHEME}$iterations:salt$StoredKey:ServerKey"
            ) from None
        if scheme != _SCHEME or len(parsed.stored_key) != 32 or len(parsed.server_key) != 32:
            raise ValueError(f"expected a {_SCHEME} line")
        if not _ITERATIONS_MIN <= parsed.iterations <= _ITERATIONS_MAX:
            raise ValueError(f"{parsed.iterations} iterations: at least {_ITERATIONS_MIN}")
        return parsed


def scram_credentials(
    password: str, salt: bytes | None = None, iterations: int = ITERATIONS
) -> ScramCredentials:
    """Return the credentials made of a password (RFC 5802 section 3).

    Raises:
        ValueError: the password has characters that SASLprep prohibits.
    """
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, iterations)
    client_key = _hmac(salted, b"Client Key")
    stored_key = hashlib.sha256(client_key).digest()
    return ScramCredentials(salt, iterations, stored_key, _hmac(salted, b"Server Key"))


class ScramSha256:
    """The method, over a file of users that is read again when it changes.

    Args:
        path: The file.
        changed: Told what went wrong when a changed file cannot be used; the users of before stay.

    Raises:
        PasswordFileError: it cannot be used.
    """

    name = _SCHEME

    def __init__(self, path: Path, changed: Callable[[str], object]) -> None:
        self.path = path
        self._changed = changed
        self._seen: Signature = file_signature(path)
        self._users = _read(path)
        self._secret = secrets.token_bytes(32)

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        seen = file_signature(self.path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._users = _read(self.path)
        except PasswordFileError as error:
            self._changed(str(error))

    def begin(self, client: ClientInfo) -> ScramExchange:
        """Return a new exchange."""
        del client
        self.refresh()
        return ScramExchange(self._find)

    def knows(self, user: str | None) -> bool:
        """Return True while a user is in the file."""
        return user in self._users

    def _find(self, user: str) -> tuple[ScramCredentials, bool]:
        """Return a user's credentials and True, or made-up ones, always the same, and False."""
        known = self._users.get(user)
        if known is not None:
            return known, True
        salt = _hmac(self._secret, user.encode())[:_SALT_BYTES]
        return ScramCredentials(salt, ITERATIONS, bytes(32), bytes(32)), False


def _read(path: Path) -> dict[str, ScramCredentials]:
    users = read_users(path, ScramCredentials.parse)
    return {user: ScramCredentials.parse(text) for user, text in users.items()}


class ScramExchange:
    """Two messages of a client: the first names it, the second proves it.

    Args:
        find: User -> credentials and whether there is such a user.
        nonce: The server's part of the nonce, for tests; None: random.
    """

    def __init__(
        self, find: Callable[[str], tuple[ScramCredentials, bool]], nonce: str | None = None
    ) -> None:
        self._find = find
        self._nonce = nonce or _base64(secrets.token_bytes(_NONCE_BYTES))
        self._user = ""
        self._known = False
        self._credentials: ScramCredentials | None = None  # None until the first message
        self._gs2_header = b""
        self._first_bare = ""
        self._server_first = ""

    async def step(self, data: bytes) -> AuthStep:
        """Take the client's next message."""
        if not data and self._credentials is None:
            return AuthStep()  # CONNECT came without data: ask for it
        if len(data) > _MESSAGE_BYTES_MAX:
            raise AuthRefusedError("SCRAM: message is too long")
        try:
            text = data.decode()
            if self._credentials is None:
                return AuthStep(self._first(text).encode())
            return AuthStep(self._final(text).encode(), done=True, username=self._user)
        except (ValueError, binascii.Error) as error:  # UnicodeDecodeError is one
            raise AuthRefusedError(f"SCRAM: {error}", ReasonCode.NOT_AUTHORIZED) from None

    def _first(self, text: str) -> str:
        """Take client-first-message; return server-first-message (RFC 5802 section 7)."""
        flag, authorization, bare = _split(text, 3)
        if flag not in ("n", "y"):
            raise ValueError("channel binding is not offered")
        fields = bare.split(",")
        if len(fields) < 2 or not fields[0].startswith("n=") or not fields[1].startswith("r="):
            raise ValueError("client-first-message is not n=user,r=nonce")
        self._user = saslprep(_unescape(fields[0][2:]))
        if authorization and _unescape(authorization.removeprefix("a=")) != self._user:
            raise ValueError("authorization as somebody else")
        client_nonce = fields[1][2:]
        if not client_nonce or not client_nonce.isascii() or not client_nonce.isprintable():
            raise ValueError("nonce is not printable ASCII")
        self._credentials, self._known = self._find(self._user)
        self._gs2_header = f"{flag},{authorization},".encode()
        self._first_bare = bare
        self._nonce = client_nonce + self._nonce
        salt = _base64(self._credentials.salt)
        self._server_first = f"r={self._nonce},s={salt},i={self._credentials.iterations}"
        return self._server_first

    def _final(self, text: str) -> str:
        """Take client-final-message; return server-final-message."""
        credentials = self._credentials
        assert credentials is not None
        without_proof, found, proof = text.rpartition(",p=")
        binding, nonce = _split(without_proof, 2)
        if not found or binding != f"c={_base64(self._gs2_header)}":
            raise ValueError("channel binding differs from the first message")
        if nonce.split(",", 1)[0] != f"r={self._nonce}":
            raise ValueError("nonce differs")
        message = f"{self._first_bare},{self._server_first},{without_proof}".encode()
        signature = _hmac(credentials.stored_key, message)
        given = _bytes(proof)
        if len(given) != len(signature):
            raise ValueError("proof has another length")
        client_key = bytes(a ^ b for a, b in zip(given, signature, strict=True))
        right = hmac.compare_digest(hashlib.sha256(client_key).digest(), credentials.stored_key)
        if not right or not self._known:
            raise ValueError(f"wrong proof for {self._user!r}")
        return "v=" + _base64(_hmac(credentials.server_key, message))


def saslprep(text: str) -> str:
    """Return a name or password as it is compared (RFC 4013); raises ValueError."""
    mapped = "".join(
        " " if stringprep.in_table_c12(sign) else sign
        for sign in text
        if not stringprep.in_table_b1(sign)
    )
    result = unicodedata.normalize("NFKC", mapped)
    prohibited = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
        stringprep.in_table_a1,
    )
    if any(table(sign) for sign in result for table in prohibited):
        raise ValueError("a character that SASLprep prohibits")
    right_to_left = [stringprep.in_table_d1(sign) for sign in result]
    if any(right_to_left) and (
        not (right_to_left[0] and right_to_left[-1])
        or any(stringprep.in_table_d2(sign) for sign in result)
    ):
        raise ValueError("text in both directions")
    return result


def _unescape(text: str) -> str:
    """Return a saslname: `=2C` is a comma, `=3D` an equals sign (RFC 5802 section 5.1)."""
    if "=" in text.replace("=2C", "").replace("=3D", ""):
        raise ValueError("'=' in a name")
    return text.replace("=2C", ",").replace("=3D", "=")


def _split(text: str, count: int) -> list[str]:
    parts = text.split(",", count - 1)
    if len(parts) != count:
        raise ValueError("message has too few parts")
    return parts


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
