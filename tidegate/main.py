"""The `tidegate` command: picks a subcommand and loads only what it needs.

A gateway must not pay for the cloud's packages, so a command's module is imported only when it is
the one asked for (or when its `--help` is). Exit codes: 0 fine, 1 failed, 2 wrong usage or
configuration. An error is one line that says what, where and what to do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from runtime.config import ConfigError
from runtime.service import StartError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "up": "everything in one process on this machine: edge, cloud, console; --sim N adds devices",
    "edge": "a gateway: MQTT broker, journal on disk, uplink to the cloud",
    "cloud": "a cloud node: takes gateways' batches, stores them, alerts, serves subscribers",
    "cluster": "the streams of a NATS cluster: plan, apply; a demonstration with things to kill",
    "sim": "simulated devices that load a broker and check what arrived",
    "tail": "print readings or messages of a running system as they arrive",
    "query": "readings from storage, by device, time and JSON field; as table, JSON, CSV or plot",
    "audit": "is every reading accounted for? assigned = stored + given up, or the exact gap",
    "trace": "the way of one reading, hop by hop: captured, batch, stream, sinks, row, alerts",
    "deadletter": "what was refused or could not be stored: list, show, redrive, discard",
    "replay": "write what storage has lost into it once more, from the stream",
    "status": "how a running edge or cloud is: link, backlog, lag, ledger",
    "whatif": "what an outage would do: does the journal last, how long is the drain",
    "reload": "have a running edge or cloud take a changed configuration, clients staying",
    "passwd": "add, change or remove a user in a password file",
    "certs": "make a small certificate authority, and gateway and device certificates",
    "check": "read a configuration file and say what is wrong with it",
    "bench": "run a benchmark of this machine, side by side with its peers",
    "docs": "write the generated pages of docs/ anew",
}

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if word in COMMANDS), "")
    try:
        options = _parser(arguments).parse_args(arguments)
        return int(options.run(options))
    except ConfigError as error:
        return _fail(command, error, EXIT_USAGE)
    except StartError as error:
        return _fail(command, error, EXIT_FAILED)
    except ModuleNotFoundError as error:
        return _fail(command, _missing(command, error), EXIT_FAILED)
    except BrokenPipeError:  # `tidegate query | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line; subparsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Raise what ends the process with 2, in place of printing the usage first."""
        raise ConfigError(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the version and exit."""
        from importlib import metadata  # noqa: PLC0415 - a fifteenth of a gateway's start

        print(metadata.version("tidegate"))
        parser.exit()


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tidegate",
        description="MQTT from the edge to the cloud: every acknowledged reading is stored exactly "
        "once, in its device's order, or its loss is recorded and shown.",
        epilog="'tidegate COMMAND --help' explains a command. Every flag is also a key in the TOML "
        "file given with -c and a variable TIDEGATE_...; see docs/configuration.md.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != asked:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"tidegate.commands.{name}")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def _fail(command: str, error: object, code: int) -> int:
    print(f"{' '.join(['tidegate', command]).strip()}: {error}", file=sys.stderr)
    return code


def _missing(command: str, error: ModuleNotFoundError) -> str:
    package = (error.name or "a package").split(".", maxsplit=1)[0]
    extra = {"up": "cloud,sim", "sim": "sim"}.get(command, "cloud")
    return f"'{package}' is not installed; pip install 'tidegate[{extra}]'"


if __name__ == "__main__":
    sys.exit(main())
