"""Password files: one `user:hash` a line, argon2id, the format of amqtt's FileAuthPlugin too.

    # comment
    alice:$argon2id$v=19$m=19456,t=2,p=1$...

Checking a password costs some 20 MB and some 20 ms on purpose. So it is done on a thread, one at a
time, and a password that was right is known again by a keyed digest while its line stays the same:
a fleet that reconnects costs nothing. RFC 9106; OWASP's parameters for little memory.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from mqtt.broker.net.tls import Signature, file_signature

__all__ = ["PasswordFileError", "Passwords", "hash_password", "read_users", "user_name_fault"]

_MEMORY_KIB, _PASSES, _LANES = 19_456, 2, 1
_WAITING_MAX: Final = 200  # checks that wait for the thread; more are refused as busy


class PasswordFileError(Exception):
    """A file of users that cannot be used; `str()` is one line: file, line, what."""


def user_name_fault(user: str) -> str:
    """Return why a user name cannot stand in a file of users; empty when it can."""
    if not user or user.startswith("#") or user != user.strip():
        return "it is empty, begins with '#', or has spaces around it"
    if any(sign in user for sign in ":\0\r\n"):
        return "it has a ':' or a control character"
    return ""


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, for a line of the file."""
    return str(_hasher().hash(password))


def read_users(path: Path, check: Callable[[str], object]) -> dict[str, str]:
    """Return what stands behind each user of a file.

    Args:
        path: The file.
        check: Raises ValueError, with the reason, for what it does not take, such as "".

    Raises:
        PasswordFileError: the file cannot be read, or a line is not `user:...`.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise PasswordFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PasswordFileError(f"{path}: byte {error.start} is not UTF-8") from None
    users: dict[str, str] = {}
    for number, text in enumerate(lines, 1):
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        user, colon, value = line.partition(":")
        try:
            check(value if colon and not user_name_fault(user) else "")
        except ValueError as error:
            raise PasswordFileError(f"{path}: line {number}: {error}") from None
        users[user] = value
    return users


def _check_hash(value: str) -> None:
    if not value.startswith("$argon2"):
        raise ValueError("expected user:argon2-hash; make one with 'tidegate passwd'")


class Passwords:
    """The users of one file, read again when it changes.

    Args:
        path: The file.
        changed: Told what went wrong when a changed file cannot be used; the users of before stay.

    Raises:
        PasswordFileError: it cannot be used.
    """

    def __init__(self, path: Path, changed: Callable[[str], object]) -> None:
        self.path = path
        self._changed = changed
        self._seen: Signature = file_signature(path)
        self._users = read_users(path, _check_hash)
        self._key = secrets.token_bytes(32)
        self._right: dict[str, tuple[str, bytes]] = {}  # user -> its line and digest when right
        self._thread = ThreadPoolExecutor(1, "mqtt-passwords")
        self._waiting = 0
        self._nobody = ""  # a hash for users there are not, so that they take as long

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        seen = file_signature(self.path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._users = read_users(self.path, _check_hash)
        except PasswordFileError as error:
            self._changed(str(error))

    def line(self, user: str | None) -> str | None:
        """Return a user's hash, None when there is no such user."""
        return self._users.get(user) if user is not None else None

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def busy(self) -> bool:
        """Return True when too many checks wait already."""
        return self._waiting >= _WAITING_MAX

    async def verify(self, user: str, password: bytes) -> bool:
        """Return True when it is the user's password."""
        self.refresh()
        line = self._users.get(user)
        digest = blake2b(password, key=self._key, person=b"tidegate").digest()
        if line is not None:
            known = self._right.get(user)
            if known is not None and known[0] == line:
                if hmac.compare_digest(known[1], digest):
                    return True
            elif known is not None:
                del self._right[user]
        self._waiting += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._verify_now, line, password
            )
        finally:
            self._waiting -= 1
        if right and line is not None:
            self._right[user] = (line, digest)
        return right and line is not None

    def _verify_now(self, line: str | None, password: bytes) -> bool:
        """Check on a thread; as long for a user there is not."""
        hasher = _hasher()
        if line is None:
            if not self._nobody:
                self._nobody = hash_password(secrets.token_hex(8))
            line = self._nobody
        from argon2.exceptions import Argon2Error, InvalidHashError  # noqa: PLC0415 - as below

        try:
            return bool(hasher.verify(line, password))
        except (Argon2Error, InvalidHashError):
            return False


def _hasher() -> Any:
    from argon2 import PasswordHasher  # noqa: PLC0415 - only who has users loads it

    return PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=_LANES)
