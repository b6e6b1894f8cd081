"""What the devices of a benchmark say."""

from __future__ import annotations

import json
import random

__all__ = ["sensor_json"]


def sensor_json(rng: random.Random, n: int) -> bytes:
    """Return the `n`th message of a sensor: JSON of about 120 bytes, with noise from `rng`."""
    return json.dumps(
        {
            "n": n,
            "temperature": round(20 + rng.gauss(0, 2), 2),
            "humidity": round(50 + rng.gauss(0, 5), 1),
            "battery": 80 + n % 20,
            "linkquality": rng.randrange(40, 250),
            "state": rng.choice(["ON", "OFF"]),
        }
    ).encode()
