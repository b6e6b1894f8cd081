"""Our broker with its session store in a process of its own, to be killed without warning.

with broker_process(tmp_path) as broker:
    ... broker.port ...
    broker.kill()
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BrokerProcess", "broker_process"]

_ROOT = Path(__file__).parent.parent.parent


class BrokerProcess:
    """A running broker; its state is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.broker_process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the broker did not start"
        self.port = int(line)

    def kill(self) -> None:
        """End it as a power cut would, but for what the system's cache has."""
        self._process.send_signal(signal.SIGKILL)
        self._close()

    def stop(self) -> None:
        """End it in order."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._close()

    def _close(self) -> None:
        self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def broker_process(folder: Path) -> Iterator[BrokerProcess]:
    """Run a broker while entered, unless it is killed before."""
    broker = BrokerProcess(folder)
    try:
        yield broker
    finally:
        broker.stop()


async def _serve(folder: Path) -> None:
    from mqtt.broker.broker import Broker
    from mqtt.broker.config import BrokerConfig
    from mqtt.broker.session_store import SqliteSessionStore

    broker = Broker(
        BrokerConfig(sys_interval_s=0), store=SqliteSessionStore(folder / "sessions.db")
    )
    await broker.start()
    print(await broker.listen("127.0.0.1", 0), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await broker.stop()


if __name__ == "__main__":
    import structlog
    import uvloop

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(_serve(Path(sys.argv[1])))
