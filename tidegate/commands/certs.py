"""Make a small certificate authority, and certificates for servers, gateways and devices.

    tidegate certs ca
    tidegate certs server cloud --host cloud.example --host 192.0.2.7
    tidegate certs gateway hall-7
    tidegate certs device pump-3
    tidegate certs revoke pump-3

Files go to --dir: NAME.pem the certificate, NAME.key its key (readable by the owner alone), ca.pem
what both sides trust, ca.crl what is revoked. Keep ca.key off the machines that need no new
certificates. docs/security.md shows the configuration that uses them.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from runtime.config import ConfigError
from runtime.service import StartError

__all__ = ["add_arguments", "run"]

KINDS = ("ca", "server", "gateway", "device", "revoke")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("kind", choices=KINDS, help="what to make, or to revoke")
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="whose it is")
    parser.add_argument(
        "--dir", type=Path, default=Path("certs"), metavar="DIR", help="the folder [certs]"
    )
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="a server's name or address"
    )
    parser.add_argument(
        "--days", type=int, default=825, metavar="N", help="how long it is valid [825]"
    )


def run(options: argparse.Namespace) -> int:
    """Make the files and print their names."""
    try:
        module = importlib.import_module("tidegate.certificates")
    except ModuleNotFoundError as error:
        raise StartError(f"'{error.name}' is not installed; install tidegate[certs]") from None
    name = options.name or ("Tidegate CA" if options.kind == "ca" else "")
    if not name:
        raise ConfigError(f"{options.kind}: give a NAME of 1 to 64 characters, such as hall-7")
    fault = module.name_fault(name)
    if fault or (name == "ca" and options.kind != "ca"):
        raise ConfigError(f"name {name!r}: {fault or 'it is the authority itself'}")
    if options.days < 1:
        raise ConfigError(f"--days {options.days}: at least 1")
    authority = module.Authority(options.dir)
    try:
        match options.kind:
            case "ca":
                files = authority.create(name)
            case "server":
                files = authority.server(name, options.host, options.days)
            case "revoke":
                files = [authority.revoke(name)]
            case _:
                files = authority.client(name, options.days)
    except module.CertificateError as error:
        raise StartError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{options.kind} {name}: {error}") from None
    for file in files:
        print(file)
    return 0
