"""From a publish to a command: what its topic, properties and payload say, and what is refused.

Invariant: a run that is tried again is the same commands again: ids are made up once.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from bridge.commands import CTL_PREFIX, ID_BYTES_MAX
from bridge.devices import DeviceIds
from cloud.commands.config import CommandsConfig
from cloud.commands.contract import WAITING, CommandBody, CommandRefused, CommandRow
from mqtt.broker.seams import PublishRun
from mqtt.errors import MqttError
from mqtt.frames import parse_publishes
from mqtt.packets import PUBLISH
from mqtt.primitives import encode_variable_integer
from mqtt.properties import (
    MESSAGE_EXPIRY_INTERVAL,
    RESPONSE_TOPIC,
    TOPIC_ALIAS,
    USER_PROPERTY,
    Properties,
    decode_properties,
    encode_property_block,
)
from mqtt.reason_codes import ReasonCode
from runtime.clock import Clock

__all__ = ["ID_PROPERTY", "REFUSED", "Intake", "TakenRun", "properties_of"]

ID_PROPERTY = "tidegate-command-id"
REFUSED = "refused"


@dataclass(slots=True)
class TakenRun:
    """A run, read: for each publish a command, a gateway's word, or why it is refused."""

    commands: list[tuple[CommandRow, CommandBody]] = field(default_factory=list)
    words: list[tuple[int, str, bytes]] = field(default_factory=list)  # place, gateway, payload
    refused: list[tuple[int, str, CommandRefused]] = field(default_factory=list)  # place, topic
    codes: list[int] = field(default_factory=list)  # the answer to each publish
    refusals_told: bool = False


class Intake:
    """Reads publishes.

    Args:
        config: Topics, sizes, times.
        clock: Wall clock.
    """

    def __init__(self, config: CommandsConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._ids = DeviceIds(config.topics)

    def read(self, run: PublishRun) -> TakenRun:
        """Return what a run says; raises MqttError when it cannot be read."""
        taken = TakenRun()
        for first, topic, _, block, payload in parse_publishes(
            run.frames, run.client.protocol_version
        ):
            name = topic.decode()
            code = 0
            if name.startswith(CTL_PREFIX):
                taken.words.append((len(taken.codes), name[len(CTL_PREFIX) :], payload))
            else:
                try:
                    qos = first >> 1 & 3
                    taken.commands.append(self.command(name, payload, qos, properties_of(block)))
                except CommandRefused as error:
                    taken.refused.append((len(taken.codes), name, error))
                    code = error.code
            taken.codes.append(code)
        return taken

    def command(
        self, topic: str, payload: bytes, qos: int, properties: Properties
    ) -> tuple[CommandRow, CommandBody]:
        """Return a command as it is kept; raises CommandRefused."""
        device = self._ids.device(topic, "")
        if not device:
            raise CommandRefused(
                ReasonCode.TOPIC_NAME_INVALID, f"'{topic}' names no device by commands.topics"
            )
        most = self._config.payload_bytes_max
        if len(payload) > most:
            raise CommandRefused(
                ReasonCode.QUOTA_EXCEEDED,
                f"'{topic}': {len(payload)} bytes, commands.payload_bytes_max is {most}",
            )
        users: list[tuple[str, str]] = properties.get(USER_PROPERTY, [])
        command_id = next((text for name, text in users if name == ID_PROPERTY), None)
        if command_id is None:
            command_id = secrets.token_hex(8)
            users = [*users, (ID_PROPERTY, command_id)]
        if not 0 < len(command_id.encode()) <= ID_BYTES_MAX:
            raise CommandRefused(
                ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
                f"'{topic}': a command id has 1 to {ID_BYTES_MAX} bytes",
            )
        kept: Properties = {**properties, USER_PROPERTY: users}
        expiry_s = kept.pop(MESSAGE_EXPIRY_INTERVAL, self._config.expiry_s)
        kept.pop(TOPIC_ALIAS, None)
        now_us = self._clock.wall_us()
        row = CommandRow(
            command_id, device, topic, max(1, qos), len(payload), now_us,
            now_us + round(expiry_s * 1e6), WAITING, "", "", now_us, kept.get(RESPONSE_TOPIC, ""),
        )  # fmt: skip
        return row, CommandBody(payload, encode_property_block(kept, PUBLISH))

    def refusal(self, topic: str, detail: str) -> CommandRow:
        """Return what is told of a command that was never taken."""
        now_us = self._clock.wall_us()
        device = self._ids.device(topic, "") or "unknown"
        return CommandRow("", device, topic, 1, 0, now_us, now_us, REFUSED, "", detail, now_us, "")


def properties_of(block: bytes) -> Properties:
    """Return the properties of a publish; raises CommandRefused when they cannot be read."""
    if not block:
        return {}
    data = encode_variable_integer(len(block)) + block
    try:
        return decode_properties(data, 0, len(data), PUBLISH)[0]
    except MqttError as error:
        raise CommandRefused(error.reason_code, str(error)) from None
