"""How a command is told where storage is: the node's file, its environment, or an address."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cloud.config import CloudConfig, StorageConfig
from runtime.config import load

__all__ = ["add_storage_arguments", "storage_config"]


def add_storage_arguments(parser: argparse.ArgumentParser, *, file: bool = False) -> None:
    """Declare the flags; `file`: also one for a storage.db anywhere."""
    where = parser.add_mutually_exclusive_group() if file else parser
    if file:
        where.add_argument("--db", type=Path, metavar="FILE", help="a storage.db, not --data's")
    where.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="the cloud node's configuration: says where storage is, if not in --data; so does "
        "TIDEGATE_STORAGE_URL",
    )


def storage_config(file: Path | None) -> StorageConfig:
    """Return where storage is, as a cloud node's file and the environment say.

    Raises:
        ConfigError: the file or the environment is not understood.
    """
    names = ("TIDEGATE_STORAGE_URL", "TIDEGATE_STORAGE_SCHEMA")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return load(CloudConfig, file=file, environment=environment).storage
