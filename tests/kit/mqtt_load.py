"""Stock clients under load on a cluster whose nodes die: what was acknowledged, what came.

Publishers send numbered payloads and note which were acknowledged; a subscriber keeps its session
and, when its node is gone, connects to the next. Both are aiomqtt (paho) with what it does by
itself; what is asked of the cluster is only what MQTT promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiomqtt
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

__all__ = ["LoadPublisher", "LoadSubscriber", "client", "running"]

_RETRY_S = 0.1


def client(
    port: int, client_id: str = "", *, lasting: bool = False, clean: bool = True, **options: object
) -> aiomqtt.Client:
    """Return an MQTT 5 client of a node on this machine."""
    properties = None
    if lasting:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
    return aiomqtt.Client(
        "127.0.0.1",
        port,
        identifier=client_id or None,
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=clean,
        properties=properties,
        timeout=60,
        **options,  # type: ignore[arg-type] # aiomqtt's own
    )


class LoadSubscriber:
    """One paho client with a session that lasts, in a thread of its own.

    It is one client object over all connections: what a client has received of a QoS 2 exchange is
    its half of the session.

    Args:
        ports: Of the nodes; the next one is tried when one does not answer.
        client_id: Its name.
        topic_filter: What it subscribes to, once.
        qos: Of its subscription.
    """

    def __init__(self, ports: Sequence[int], client_id: str, topic_filter: str, qos: int) -> None:
        self.got: Counter[bytes] = Counter()
        self.connects = 0
        self.is_ready = False
        self._ports = itertools.cycle(ports)
        self._topic_filter = topic_filter
        self._qos = qos
        self._ending = False
        self._client = one = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        one.on_connect = self._connected
        one.on_subscribe = self._subscribed
        one.on_message = self._received

    def _connected(self, *_: object) -> None:
        self.connects += 1
        if not self.is_ready:
            self._client.subscribe(self._topic_filter, self._qos)

    def _subscribed(self, *_: object) -> None:
        self.is_ready = True

    def _received(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        self.got[message.payload] += 1

    def _loop(self) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        for port in self._ports:
            if self._ending:
                return
            with contextlib.suppress(OSError):
                self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)
                while not self._ending and self._client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS:
                    pass
            time.sleep(_RETRY_S)

    def end(self) -> None:
        """Begin nothing more."""
        self._ending = True

    async def run(self) -> None:
        """Receive until cancelled."""
        loop = asyncio.create_task(asyncio.to_thread(self._loop))
        try:
            await asyncio.shield(loop)
        finally:
            self._ending = True
            await loop


class LoadPublisher:
    """One client that publishes one message after the other; what is not acknowledged is left.

    Args:
        ports: Of the nodes.
        name: Begins every payload.
        topic_name: Where to.
        qos: How.
        pause_s: Between two messages.
    """

    def __init__(
        self, ports: Sequence[int], name: str, topic_name: str, qos: int, pause_s: float = 0.0
    ) -> None:
        self.acknowledged: list[bytes] = []
        self._ports = itertools.cycle(ports)
        self._name = name
        self._topic_name = topic_name
        self._qos = qos
        self._pause_s = pause_s
        self._number = 0
        self._ending = False

    def end(self) -> None:
        """Begin nothing more: what leaving raises may hide that the task was cancelled."""
        self._ending = True

    async def run(self) -> None:
        """Publish until cancelled."""
        for port in self._ports:
            with contextlib.suppress(aiomqtt.MqttError):
                async with client(port) as one:
                    while not self._ending:
                        self._number += 1
                        payload = f"{self._name}-{self._number}".encode()
                        await one.publish(self._topic_name, payload, self._qos)
                        self.acknowledged.append(payload)
                        await asyncio.sleep(self._pause_s)
            if self._ending:
                return
            await asyncio.sleep(_RETRY_S)


@asynccontextmanager
async def running(*parts: LoadPublisher | LoadSubscriber) -> AsyncIterator[None]:
    """Run clients while entered."""
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        yield
    finally:
        for part, task in zip(parts, tasks, strict=True):
            part.end()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
