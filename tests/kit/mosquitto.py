"""A mosquitto of a test's own: an independent broker on a free loopback port."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.processes import free_ports, wait_until_listening
from tests.kit.programs import program

__all__ = ["mosquitto", "mosquitto_program"]

_SETTINGS = """
listener {port} 127.0.0.1
allow_anonymous true
max_inflight_messages 0
max_queued_messages 0
"""


def mosquitto_program() -> str:
    """Return where mosquitto is. Skips the calling test where it is absent."""
    return program("mosquitto", "mosquitto")


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """Run mosquitto while entered; gives its port. Skips the calling test where it is absent."""
    broker = mosquitto_program()
    (port,) = free_ports(1)
    config = folder / "mosquitto.conf"
    config.write_text(_SETTINGS.format(port=port))
    with (folder / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen([broker, "-c", str(config)], stdout=log, stderr=log)
    try:
        wait_until_listening(port)
        yield port
    finally:
        process.terminate()
        process.wait(60)
