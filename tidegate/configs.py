"""Which configuration each command reads; the classes are imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable

__all__ = ["CONFIGS"]


def _from(module: str, name: str) -> Callable[[], type]:
    def get() -> type:
        cls: type = getattr(importlib.import_module(module), name)
        return cls

    return get


CONFIGS: dict[str, Callable[[], type]] = {
    "edge": _from("edge.config", "EdgeConfig"),
    "cloud": _from("cloud.config", "CloudConfig"),
    "up": _from("tidegate.up", "UpConfig"),
    "sim": _from("device_sim.config", "SimConfig"),
}
