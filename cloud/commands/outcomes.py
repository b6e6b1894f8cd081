"""Telling what became of a command: on its outcome topic and where its publisher wants it."""

from __future__ import annotations

import json

import structlog

from cloud.commands.contract import CommandBody, CommandRow
from cloud.commands.intake import properties_of
from cloud.query_time import iso
from mqtt.broker.broker import Broker, Outgoing
from mqtt.errors import MqttError
from mqtt.packets import PUBLISH
from mqtt.properties import CORRELATION_DATA, encode_property_block

__all__ = ["OUTCOME_PREFIX", "publish_outcome"]

log = structlog.get_logger(component="commands")

OUTCOME_PREFIX = "tidegate/v1/outcome/"


async def publish_outcome(broker: Broker, row: CommandRow, body: CommandBody | None) -> None:
    """Publish an outcome; with its subscribers, or durable for them, on return.

    Args:
        broker: Ours.
        row: The command.
        body: For its correlation data; None: there is none.
    """
    said = {
        "id": row.command_id,
        "device": row.device,
        "topic": row.topic,
        "outcome": row.state,
        "gateway": row.gateway,
        "detail": row.detail,
        "time": iso(row.changed_us),
    }
    payload = json.dumps(said).encode()
    messages = [Outgoing(OUTCOME_PREFIX + row.device, payload, 1)]
    if row.response_topic:
        properties = _correlation(body) if body is not None else b""
        messages.append(Outgoing(row.response_topic, payload, 1, properties=properties))
    for message in messages:
        try:
            await broker.publish_many([message])
        except MqttError as error:  # a response topic that is none
            log.warning("outcome_not_told", topic=message.topic_name, error=str(error))
    log.info("command_outcome", **said)


def _correlation(body: CommandBody) -> bytes:
    """Return the correlation data of a command, as a property block for its answer."""
    kept = properties_of(body.properties)
    return encode_property_block(
        {key: kept[key] for key in (CORRELATION_DATA,) if key in kept}, PUBLISH
    )
