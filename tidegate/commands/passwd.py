"""Add, change or remove a user in a password file (access.password_file).

    tidegate passwd users.txt alice            asks for the password, twice
    echo secret | tidegate passwd users.txt alice --stdin
    tidegate passwd users.txt alice --scram    for access.scram_file
    tidegate passwd users.txt alice --delete
    tidegate passwd users.txt --list

Passwords are kept as argon2id hashes, in the format of amqtt's FileAuthPlugin; with --scram as the
keys of SCRAM-SHA-256, for MQTT 5's enhanced authentication. Others than its owner and group never
read the file, and it keeps these two and their rights; one that is open to everybody becomes its
owner's alone. It is replaced as a whole, and a running edge or cloud takes it without a reload.
"""

from __future__ import annotations

import argparse
import getpass
import os
import stat
import sys
import warnings
from pathlib import Path

from mqtt.broker.access.passwords import hash_password, user_name_fault
from mqtt.broker.access.scram import saslprep, scram_credentials
from runtime.config import ConfigError
from runtime.service import StartError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the password file; made if absent")
    parser.add_argument("user", nargs="?", default="", metavar="USER", help="the user's name")
    parser.add_argument("--stdin", action="store_true", help="read the password from one line")
    parser.add_argument("--scram", action="store_true", help="write keys for SCRAM-SHA-256")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--delete", action="store_true", help="remove the user")
    what.add_argument("--list", action="store_true", help="print the users' names")


def run(options: argparse.Namespace) -> int:
    """Change or list the file; raises ConfigError for wrong input, StartError for the file."""
    try:
        lines = _lines(options.file)
        if options.list and not options.file.exists():
            raise ConfigError(f"{options.file}: no such file")
        if options.list:
            for line in lines:
                if _user_of(line):
                    print(_user_of(line))
            return 0
        user = saslprep(options.user) if options.scram else options.user
        fault = user_name_fault(user)
        if fault:
            raise ConfigError(f"user {user!r}: {fault}")
        kept = [line for line in lines if _user_of(line) != user]
        if options.delete and len(kept) == len(lines):
            raise ConfigError(f"{options.file} has no user {user!r}")
        if not options.delete:
            kept.append(f"{user}:{_secret(_password(options), scram=options.scram)}")
        _write(options.file, kept)
    except OSError as error:
        raise StartError(f"{options.file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise StartError(f"{options.file}: not a password file: it is not UTF-8") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    done = "removed from" if options.delete else "written to"
    print(f"{user} {done} {options.file}")
    return 0


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines() if file.exists() else []


def _user_of(line: str) -> str:
    """Return the user a line is about; empty for comments."""
    plain = line.strip()
    return "" if plain.startswith("#") else plain.partition(":")[0]


def _secret(password: str, *, scram: bool) -> str:
    return str(scram_credentials(password)) if scram else hash_password(password)


def _password(options: argparse.Namespace) -> str:
    if options.stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        try:
            with warnings.catch_warnings():  # where it could not hide what is typed
                warnings.simplefilter("error", getpass.GetPassWarning)
                password = getpass.getpass("Password: ")
                again = getpass.getpass("Again: ")
        except (EOFError, getpass.GetPassWarning):
            raise ConfigError("no password was given; --stdin reads it from a pipe") from None
        if again != password:
            raise ConfigError("the two passwords differ")
    if not password:
        raise ConfigError("the password is empty")
    return password


def _write(file: Path, lines: list[str]) -> None:
    """Replace the file in one step; a reader sees the old one or the new one."""
    new = file.with_name(file.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        if file.exists():  # the service that reads it may be another user than who changes it
            before = file.stat()
            os.fchown(descriptor, before.st_uid, before.st_gid)
            is_open = before.st_mode & stat.S_IRWXO
            os.fchmod(descriptor, 0o600 if is_open else stat.S_IMODE(before.st_mode))
            if is_open:
                print(
                    f"tidegate: {file}: was open to everybody on this machine, now to its owner"
                    f" alone; for a service that runs as another user: chown USER {file}",
                    file=sys.stderr,
                )
        stream.writelines(f"{line}\n" for line in lines)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)
