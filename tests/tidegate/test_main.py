"""The command line itself: help, usage errors, exit codes, and what a command may import."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tidegate.main import COMMANDS, main


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_teaches_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: tidegate {command}" in capsys.readouterr().out


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == metadata.version("tidegate")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "tidegate: the following arguments are required: COMMAND"),
        (["nonsense"], "'nonsense'"),
        (["check"], "tidegate check: "),
        (["check", "--nonsense"], "tidegate check: "),
        (["trace", "gw-1", "notanumber"], "'notanumber' is not a whole number"),
        (["trace", "gw-1"], "tidegate trace: give GATEWAY SEQ"),
        (["trace", "gw-1", "1", "--epoch", "zz"], "an epoch has 1 to 16 hex digits, not 'zz'"),
        (["audit", "--hours", "soon"], "tidegate audit: argument --hours"),
        (["audit", "--hours", "soon"], "hours are more than 0 and at most 87600, not soon"),
        (["audit", "--hours", "-1"], "hours are more than 0 and at most 87600, not -1"),
    ],
)
def test_wrong_usage_is_one_line_and_ends_with_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_check_names_the_key_and_the_nearest_valid_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edge.toml"
    path.write_text("[journal]\ncomit_window_ms = 20\n")
    assert main(["check", "-c", str(path), "--as", "edge"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "journal.comit_window_ms" in error
    assert "did you mean 'commit_window_ms'?" in error


def test_check_takes_a_file_for_the_command_that_has_its_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "site.toml"
    path.write_text('[[alerts.rule]]\nname = "hot"\nkind = "nope"\n')  # a cloud's, one fault
    assert main(["check", "-c", str(path)]) == 2
    line = capsys.readouterr().err
    assert "kind: expected one of" in line
    assert "unknown key" not in line


def test_check_accepts_a_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edge.toml"
    path.write_text("[journal]\ncommit_window_ms = 20\n")
    assert main(["check", "-c", str(path)]) == 0
    assert "good for 'tidegate edge'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[uplink]\ntls_ca_file = "none.pem"\n', "uplink.tls_ca_file: none.pem cannot be read: No"),
        (
            '[[listeners]]\ntransport="tls"\nport=1\ntls_cert_file="none.pem"\ntls_key_file="k"\n',
            "listeners[1].tls_cert_file: none.pem cannot be read",
        ),
        ('[access]\npassword_file = "none"\n', "access.password_file: none cannot be read"),
    ],
)
def test_check_names_files_that_are_not_there(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    assert main(["check", "-c", str(path), "--as", "edge"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["edge", "cloud", "up"])
def test_a_data_folder_that_cannot_be_had_is_one_line(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([command, "--data", str(tmp_path / "file" / "data")]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "data folder" in error


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", str(tmp_path / "none.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_gateway_never_imports_the_clouds_packages() -> None:
    # rich is not among them: structlog imports it where it is installed, a gateway has it not
    code = (
        "import sys, tidegate.commands.edge\n"
        "heavy = {'fastapi', 'uvicorn', 'plotext', 'httpx', 'cloud', 'device_sim', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


EXTRAS = (
    "amqtt", "asyncpg", "cryptography", "fastapi", "hdrh", "httpx", "nats", "plotext", "pyarrow",
    "rich", "uvicorn",
)  # fmt: skip


def base_install(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as where only the base install is, what a gateway has."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
        "from tidegate.main import main; sys.exit(main())"
    )
    ran = [sys.executable, "-c", program, *arguments]
    return subprocess.run(ran, capture_output=True, text=True, check=False)


def test_a_gateways_install_checks_its_file() -> None:
    file = Path(__file__).parents[2] / "deploy" / "raspberrypi" / "edge.toml"
    done = base_install("check", "-c", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "good for 'tidegate edge'" in done.stdout
    other = base_install("check", "-c", str(file), "--as", "up")
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("command", "extra"), [("cloud", "cloud"), ("up", "cloud,sim"), ("sim", "sim")]
)
def test_a_command_says_which_install_it_needs(command: str, extra: str) -> None:
    done = base_install(command)
    assert done.returncode == 1
    assert done.stderr.endswith(f"is not installed; pip install 'tidegate[{extra}]'\n")


@pytest.mark.parametrize("command", ["edge", "passwd", "reload", "status", "tail", "whatif"])
def test_a_gateways_install_has_what_a_gateway_needs(command: str) -> None:
    assert base_install(command, "--help").returncode == 0
