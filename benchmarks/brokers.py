"""Brokers for benchmarks, each in a process of its own: ours with the edge's journal, and peers.

    with ours(folder) as broker: ... broker.port, broker.pid
    with mosquitto(folder) as broker: ...
    with amqtt(folder) as broker: ...

`python -m benchmarks.brokers FOLDER` serves ours until its standard input ends.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunningBroker", "ServerKey", "amqtt", "mosquitto", "ours"]

_MOSQUITTO = """
user root
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
set_tcp_nodelay true
log_type none
{tls}
"""

_AMQTT = """
listeners:
  default:
    type: tcp
    bind: 127.0.0.1:{port}
    max_connections: 10000
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that takes connections on a loopback port."""

    name: str
    port: int
    pid: int


@dataclass(frozen=True, slots=True)
class ServerKey:
    """PEM files of a server: with them a broker listens by TLS only."""

    certificate: Path
    key: Path


@contextmanager
def ours(
    folder: Path,
    *,
    captured: bool = True,
    durability: str = "power-loss",
    tls: ServerKey | None = None,
) -> Iterator[RunningBroker]:
    """Run our broker with the edge's real capture and journal in `folder`.

    Args:
        folder: For the journal and the session store; made if it is not there.
        captured: Whether `devices/#` is captured at all.
        durability: `journal.durability`.
        tls: What to show clients by TLS; plain TCP without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(folder), str(int(captured)), durability]
    if tls is not None:
        arguments += [str(tls.certificate), str(tls.key)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.brokers", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("our broker did not start")
        yield RunningBroker("tidegate", int(line), process.pid)
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@contextmanager
def mosquitto(folder: Path, *, tls: ServerKey | None = None) -> Iterator[RunningBroker]:
    """Run mosquitto without persistence. Raises FileNotFoundError if it is not installed."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise FileNotFoundError("mosquitto is not installed")
    files = f"certfile {tls.certificate}\nkeyfile {tls.key}" if tls is not None else ""
    settings = _MOSQUITTO.replace("{tls}", files)
    with _peer("mosquitto", folder, settings, [program, "-c"]) as broker:
        yield broker


@contextmanager
def amqtt(folder: Path) -> Iterator[RunningBroker]:
    """Run amqtt, the asyncio broker from PyPI, on its defaults: MQTT 3.1.1 only."""
    program = Path(sys.executable).parent / "amqtt"
    with _peer("amqtt", folder, _AMQTT, [str(program), "-c"]) as broker:
        yield broker


@contextmanager
def _peer(name: str, folder: Path, settings: str, command: list[str]) -> Iterator[RunningBroker]:
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / f"{name}.conf"
    config.write_text(settings.format(port=port))
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*command, str(config)], stdout=log, stderr=log)
    try:
        _wait_until_listening(port)
        yield RunningBroker(name, port, process.pid)
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


async def _serve(folder: Path, captured: bool, durability: str, tls: list[str]) -> int:
    from edge.capture import Capture  # noqa: PLC0415 - only the serving process needs them
    from edge.config import CaptureConfig, JournalConfig  # noqa: PLC0415
    from edge.journal import Journal  # noqa: PLC0415
    from mqtt.broker.broker import Broker  # noqa: PLC0415
    from mqtt.broker.config import BrokerConfig  # noqa: PLC0415
    from mqtt.broker.net.config import ListenerConfig  # noqa: PLC0415
    from mqtt.broker.session_store import SqliteSessionStore  # noqa: PLC0415
    from runtime.clock import SystemClock  # noqa: PLC0415

    clock = SystemClock()
    config = JournalConfig(durability=durability)
    journal = await Journal.open(folder / "journal.db", config, clock)
    capture = Capture(journal, CaptureConfig(), config, clock) if captured else None
    store = SqliteSessionStore(folder / "sessions.db")
    broker = Broker(BrokerConfig(), capture=capture, store=store)
    await broker.start()
    listener = ListenerConfig(port=0)
    if tls:
        certificate, key = map(Path, tls)
        listener = ListenerConfig(
            transport="tls", port=0, tls_cert_file=certificate, tls_key_file=key
        )
    print(await broker.open_listener(listener), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await broker.stop()
    if capture is not None:
        await capture.close()
    await journal.close()
    return 0


def main() -> None:
    """Serve our broker until standard input ends."""
    import logging  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    from runtime.service import run  # noqa: PLC0415

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    folder, captured, durability, *tls = sys.argv[1:]
    run(_serve(Path(folder), captured == "1", durability, tls))


if __name__ == "__main__":
    main()
