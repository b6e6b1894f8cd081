"""How a command is told where a node's data is: a folder, the node's file, its environment."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cloud.config import CloudConfig, StorageConfig
from cloud.database import DatabaseMissing
from runtime.config import load

__all__ = ["DATA_HELP", "add_storage_arguments", "data_folder", "said", "storage_config"]

DATA_HELP = "the data folder of a cloud node [that of -c, or tidegate-data]"


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
        help="the cloud node's configuration: says where its data folder is, and storage, if not "
        "there; so does TIDEGATE_STORAGE_URL",
    )


def storage_config(file: Path | None) -> StorageConfig:
    """Return where storage is, as a cloud node's file and the environment say.

    Raises:
        ConfigError: the file or the environment is not understood.
    """
    return _config(file).storage


def _config(file: Path | None) -> CloudConfig:
    """Return a cloud node's configuration as far as it says where its readings are."""
    names = ("TIDEGATE_DATA", "TIDEGATE_STORAGE_URL", "TIDEGATE_STORAGE_SCHEMA")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return load(CloudConfig, file=file, environment=environment)


def data_folder(options: argparse.Namespace) -> Path:
    """Return the folder that `--data`, the environment or the node's file names, or the default.

    Raises:
        ConfigError: the file is not understood.
    """
    if options.data is not None:
        return Path(options.data)
    return _config(options.config).data


def said(error: Exception) -> str:
    """Return an error as an operator's line, with what to do where a file is not there."""
    missing = isinstance(error, DatabaseMissing)
    return f"{error}{'; is that the --data of a cloud node?' if missing else ''}"
