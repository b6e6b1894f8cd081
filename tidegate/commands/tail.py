"""Print messages of a running broker as they arrive.

    tidegate tail                                 everything at the cloud of this machine
    tidegate tail 'devices/boiler-7/#'            one device
    tidegate tail --broker mqtt://gw-3:1883 '#'   at a gateway
    tidegate tail --json 'devices/+/temp' | jq .payload

Backlog that comes late is marked `late` (MQTT 5 user property tidegate-historical).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import aiomqtt
from paho.mqtt.subscribeoptions import SubscribeOptions

from runtime.config import ConfigError
from runtime.service import StartError
from runtime.service import run as run_loop

__all__ = ["add_arguments", "run"]

DEFAULT_BROKER = "mqtt://127.0.0.1:2883"
HISTORICAL = "tidegate-historical"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("filters", nargs="*", metavar="FILTER", help="topic filters [devices/#]")
    parser.add_argument(
        "--broker", default=DEFAULT_BROKER, metavar="URL", help=f"where [{DEFAULT_BROKER}]"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N messages")
    parser.add_argument("--retained", action="store_true", help="retained messages too, at once")


def run(options: argparse.Namespace) -> int:
    """Print until interrupted or until --count."""
    return run_loop(_tail(options))


async def _tail(options: argparse.Namespace) -> int:
    address = urlsplit(options.broker if "://" in options.broker else f"mqtt://{options.broker}")
    try:
        host, port = address.hostname, address.port or 1883
    except ValueError:
        host = None
    if host is None or address.scheme != "mqtt":
        raise ConfigError(f"--broker: expected mqtt://host:port, got '{options.broker}'")
    client = aiomqtt.Client(
        host,
        port,
        protocol=aiomqtt.ProtocolVersion.V5,
        username=unquote(address.username) if address.username else None,
        password=unquote(address.password) if address.password else None,
    )
    subscribe_options = SubscribeOptions(qos=1, retainHandling=0 if options.retained else 2)
    try:
        async with client:
            for topic_filter in options.filters or ["devices/#"]:
                await client.subscribe(topic_filter, options=subscribe_options)
            await _print_all(client, options)
    except aiomqtt.MqttError as error:
        raise StartError(f"{options.broker}: {error}; is a broker listening there?") from None
    except asyncio.CancelledError:
        return 130
    return 0


async def _print_all(client: aiomqtt.Client, options: argparse.Namespace) -> None:
    seen = 0
    async for message in client.messages:
        print(_as_json(message) if options.json else _as_line(message), flush=True)
        seen += 1
        if seen == options.count:
            return


def _as_line(message: aiomqtt.Message) -> str:
    time = datetime.now(UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    mark = " late" if _historical(message) else " retained" if message.retain else ""
    payload = _text(message.payload)
    if len(payload) > 400 and sys.stdout.isatty():
        payload = payload[:400] + f"… ({len(payload)} characters)"
    return f"{time}{mark} {message.topic} {payload}"


def _as_json(message: aiomqtt.Message) -> str:
    return json.dumps(
        {
            "topic": str(message.topic),
            "qos": message.qos,
            "retain": message.retain,
            "historical": _historical(message),
            "payload": _value(message.payload),
        },
        ensure_ascii=False,
    )


def _historical(message: aiomqtt.Message) -> bool:
    pairs = getattr(message.properties, "UserProperty", ())
    return any(name == HISTORICAL for name, _ in pairs)


def _text(payload: Any) -> str:
    try:
        text: str = payload.decode("utf-8")
    except UnicodeDecodeError:
        return f"0x{payload.hex()}"
    return text if text.isprintable() else repr(text)


def _value(payload: Any) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return _text(payload)
