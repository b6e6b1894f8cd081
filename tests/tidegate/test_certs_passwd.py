"""tidegate certs and tidegate passwd: the files they make, and what they refuse."""

from __future__ import annotations

import getpass
import io
import os
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from mqtt.broker.access.passwords import Passwords
from mqtt.broker.access.scram import ScramSha256
from tests.kit.programs import program
from tidegate.main import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "certs"
    assert main(["certs", "ca", "--dir", str(folder)]) == 0
    return folder


def certs(folder: Path, *arguments: str) -> int:
    return main(["certs", *arguments, "--dir", str(folder)])


def test_a_chain_that_openssl_accepts(folder: Path) -> None:
    assert certs(folder, "server", "cloud", "--host", "localhost", "--host", "192.0.2.7") == 0
    assert certs(folder, "gateway", "hall-7", "--days", "30") == 0
    openssl = program("openssl", "openssl")
    for name, purpose in (("cloud", "sslserver"), ("hall-7", "sslclient")):
        subprocess.run(
            [openssl, "verify", "-x509_strict", "-purpose", purpose,
             "-CAfile", folder / "ca.pem", folder / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip


def test_keys_are_the_owners_alone(folder: Path) -> None:
    certs(folder, "device", "pump-3")
    for name in ("ca.key", "pump-3.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_no_file_is_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "ca.key").read_bytes()
    assert certs(folder, "ca") == 1
    assert "is there already" in capsys.readouterr().err
    assert (folder / "ca.key").read_bytes() == before


def test_a_list_of_revocations_grows(folder: Path) -> None:
    for name in ("a", "b"):
        certs(folder, "device", name)
        assert certs(folder, "revoke", name) == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca.crl")
    assert context.cert_store_stats()["crl"] == 1
    from cryptography import x509

    assert len(x509.load_pem_x509_crl((folder / "ca.crl").read_bytes())) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("device", "a/b"), 2, "no '/'"),
        (("device", ""), 2, "1 to 64 characters"),
        (("device", "ca"), 2, "the authority itself"),
        (("device", "a", "--days", "0"), 2, "at least 1"),
        (("revoke", "ghost"), 1, "is not there"),
    ],
)
def test_what_certs_refuses(
    folder: Path,
    arguments: tuple[str, ...],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert certs(folder, *arguments) == code
    assert says in capsys.readouterr().err


def test_without_an_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(tmp_path, "device", "a") == 1
    assert "tidegate certs ca" in capsys.readouterr().err


# -- passwd ---------------------------------------------------------------------------------------


def passwd(
    monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str, password: str = "secret"
) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
    return main(["passwd", str(file), *arguments, "--stdin"])


async def test_passwords_that_the_broker_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "users"
    file.write_text("# kept\n")
    assert passwd(monkeypatch, file, "alice") == 0
    assert passwd(monkeypatch, file, "bob", password="other") == 0
    assert passwd(monkeypatch, file, "alice", password="changed") == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("# kept\n")
    passwords = Passwords(file, pytest.fail)
    assert await passwords.verify("alice", b"changed")
    assert await passwords.verify("bob", b"other")
    assert not await passwords.verify("alice", b"secret")
    passwords.close()


def test_scram_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scram"
    assert passwd(monkeypatch, file, "alice", "--scram") == 0
    assert ScramSha256(file, pytest.fail).knows("alice")


def test_users_are_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "users"
    passwd(monkeypatch, file, "alice")
    passwd(monkeypatch, file, "bob")
    assert main(["passwd", str(file), "alice", "--delete"]) == 0
    capsys.readouterr()
    assert main(["passwd", str(file), "--list"]) == 0
    assert capsys.readouterr().out == "bob\n"
    assert main(["passwd", str(file), "alice", "--delete"]) == 2
    assert "has no user 'alice'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("user", "password", "says"),
    [("a:b", "x", "has a ':'"), ("", "x", "it is empty"), ("a", "", "password is empty")],
)
def test_what_passwd_refuses(
    user: str,
    password: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert passwd(monkeypatch, tmp_path / "users", user, password=password) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "users").exists()


def test_without_a_terminal_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_terminal(_prompt: str) -> str:
        raise EOFError

    def echoing(prompt: str) -> str:
        return getpass.fallback_getpass(prompt, io.StringIO())  # type: ignore[attr-defined, no-any-return]

    for ask in (no_terminal, echoing):
        monkeypatch.setattr(getpass, "getpass", ask)
        monkeypatch.setattr("sys.stdin", io.StringIO("secret\nsecret\n"))
        assert main(["passwd", str(tmp_path / "passwd"), "alice"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--stdin" in line
        assert not (tmp_path / "passwd").exists()


@pytest.mark.parametrize(("mode", "kept"), [(0o640, 0o640), (0o644, 0o600)])
def test_a_file_keeps_who_may_read_it_but_everybody(
    mode: int,
    kept: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A service that runs as another user reads it after root has changed it, too."""
    file = tmp_path / "users"
    assert passwd(monkeypatch, file, "alice") == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(mode)
    if os.geteuid() == 0:
        os.chown(file, 4_711, 4_712)
    before = file.stat()
    capsys.readouterr()
    assert passwd(monkeypatch, file, "bob") == 0
    assert capsys.readouterr().err.count("was open to everybody") == (kept != mode)
    after = file.stat()
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (
        kept, before.st_uid, before.st_gid,
    )  # fmt: skip
    assert [line.partition(":")[0] for line in file.read_text().splitlines()] == ["alice", "bob"]


def test_users_of_no_file_are_not_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["passwd", str(tmp_path / "users"), "--list"]) == 2
    assert "no such file" in capsys.readouterr().err
