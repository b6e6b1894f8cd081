"""MQTT.js, where it is installed: another's client, to judge us by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.programs import program

__all__ = ["INTEROP", "node_with_mqtt_js"]

INTEROP = Path(__file__).parents[1] / "interop"


def node_with_mqtt_js() -> str:
    """Return the path of node; skips the test where node or MQTT.js is not installed."""
    node = program("node", "nodejs")
    if not (INTEROP / "node_modules" / "mqtt").is_dir():
        pytest.skip("MQTT.js is not installed: run 'npm install' in tests/interop")
    return node
