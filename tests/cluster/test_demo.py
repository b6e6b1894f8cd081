"""`tidegate cluster demo` as people start it, small."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tidegate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=500,  # a hang
    )


def test_the_demonstration_tells_where_to_look_and_balances(tmp_path: Path) -> None:
    done = tidegate(
        "cluster", "demo", "--duration", "4", "--devices", "9", "--rate", "90",
        "--data", str(tmp_path / "demo"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill -9") == 9
    assert done.stdout.count("http://127.0.0.1:") == 7
    assert "balances: 3 accounts" in done.stdout


@contextmanager
def demonstration(
    folder: Path,
) -> Iterator[tuple[subprocess.Popen[str], list[int], list[list[str]]]]:
    """A demonstration in a session of its own, as in a terminal.

    With the processes that it told of, and the commands.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "tidegate", "cluster", "demo", "--devices", "9", "--rate", "300",
         "--data", str(folder)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    late = threading.Timer(500, child.kill)
    late.start()
    pids: list[int] = []
    commands: list[list[str]] = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            pids += [int(pid) for pid in re.findall(r"kill -9 (\d+)", line)]
            if line.startswith("  tidegate "):
                commands.append(line.split()[1:])
            if re.search(r"node-\d took [1-9]", line):  # gateways begin at whichever is first
                break
        yield child, pids, commands
    finally:
        late.cancel()
        child.kill()
        child.communicate()
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"tidegate" in command or b"nats" in command


def test_ctrl_c_ends_it_in_the_order_of_the_readings_and_it_balances(tmp_path: Path) -> None:
    """The terminal signals every process of the session at once, in the midst of the traffic."""
    with demonstration(tmp_path / "demo") as (child, pids, _):
        os.kill(pids[0], signal.SIGKILL)  # a server is down when the end comes
        os.killpg(child.pid, signal.SIGINT)
        said, _ = child.communicate(timeout=450)
        assert child.returncode == 0, said
        assert "balances: 3 accounts" in said
        assert "waiting (" not in said
        assert not any(map(alive, pids))


def test_the_commands_it_tells_of_work_and_a_second_ctrl_c_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    with demonstration(tmp_path / "demo") as (child, pids, commands):
        for command in commands:
            done = tidegate(*command)
            assert done.returncode == 0, done.stdout + done.stderr
        assert {command[1] for command in commands} == {"--partitions", "plan", "drain"}
        os.killpg(child.pid, signal.SIGINT)
        assert child.stdout is not None
        for line in child.stdout:
            if "Stopping the devices" in line:
                break
        os.killpg(child.pid, signal.SIGINT)
        said, _ = child.communicate(timeout=450)
        assert (child.returncode, "stopped at once" in said) == (130, True)
        assert len(pids) == 9
        assert not any(map(alive, pids))
