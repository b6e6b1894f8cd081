"""The cloud's HTTP API as a store: `--verify http://host:8080`.

The API shows a JSON payload as its value, not as its bytes, so this comparison is of values:
`canonical` writes both sides the same way. Against storage.db the comparison is to the bit.

Uses `GET /api/v1/ledger`, `/devices` and `/devices/{id}/readings`; rows from before the run are
told by the ledger's highest seq of each (gateway, epoch) at its begin.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections import deque
from typing import Any
from urllib.parse import quote

import httpx

from device_sim.stores import Observe, VerifyError

__all__ = ["HttpStore"]

_WORKERS = 2  # the API answers two queries at once
_ATTEMPTS = 4
_PAUSE_S = 0.5
_TIMEOUT_S = 30.0
_PAGE_DEVICES = 1000


class HttpStore:
    """Stored readings as the API of a cloud node tells them.

    Args:
        url: `http(s)://host:port`.
        transport: How to get there, for tests.
    """

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._url = url.rstrip("/").removesuffix("/api/v1")
        self._transport = transport
        self._before: dict[tuple[str, str], int] = {}  # highest seq by (gateway, epoch)
        self._stored_before = 0

    @staticmethod
    def canonical(payload: bytes) -> bytes:
        """Return a payload as its value in the API's answer, written compactly."""
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return _compact({"payload_base64": base64.b64encode(payload).decode()})
        try:
            return _compact(json.loads(text, parse_constant=_refuse, parse_float=_finite))
        except (ValueError, RecursionError):
            return _compact(text)

    async def begin(self) -> None:
        async with self._client() as client:
            ledger = await self._ledger(client)
        self._before = {(row["gateway"], row["epoch"]): row["assigned"] for row in ledger}
        self._stored_before = sum(row["stored"] for row in ledger)

    async def count(self) -> int:
        async with self._client() as client:
            ledger = await self._ledger(client)
        stored: int = sum(row["stored"] for row in ledger)
        return stored - self._stored_before

    async def feed(self, observe: Observe) -> None:
        fault: BaseException | None = None
        async with self._client() as client:
            devices = deque(await self._devices(client))

            async def work() -> None:
                while devices:
                    await self._feed_device(client, devices.popleft(), observe)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(_WORKERS):
                        group.create_task(work())
            except* VerifyError as failed:
                fault = failed.exceptions[0]
        if fault is not None:
            raise fault

    async def _devices(self, client: httpx.AsyncClient) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            page = await self._get(client, "devices", limit=_PAGE_DEVICES, after=after)
            found += [row["device"] for row in page["devices"]]
            after = page["next"]
            if not after:
                return found

    async def _feed_device(self, client: httpx.AsyncClient, device: str, observe: Observe) -> None:
        """Give a device's new rows in the order of storage; pages come in the order of time."""
        rows: dict[tuple[str, str], list[tuple[int, str, bytes, int]]] = {}
        after = ""
        path = f"devices/{quote(device, safe='')}/readings"
        while True:
            page = await self._get(client, path, order="asc", after=after)
            for row in page["readings"]:
                source = (row["gateway"], row["epoch"])
                if row["seq"] > self._before.get(source, 0):
                    if "payload_base64" in row:
                        payload = _compact({"payload_base64": row["payload_base64"]})
                    else:
                        payload = _compact(row["payload"])
                    rows.setdefault(source, []).append(
                        (row["seq"], row["topic"], payload, row["received_us"])
                    )
            after = page["next"]
            if not after:
                break
        for source in sorted(rows, key=lambda source: min(row[3] for row in rows[source])):
            for _, topic, payload, received_us in sorted(rows[source]):
                observe(topic, payload, received_us)

    async def _ledger(self, client: httpx.AsyncClient) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = (await self._get(client, "ledger"))["ledger"]
        return answer

    async def _get(self, client: httpx.AsyncClient, path: str, **parameters: object) -> Any:
        """Return an answer's JSON; an overloaded node is asked again a few times."""
        url = f"{self._url}/api/v1/{path}"
        given = {name: str(value) for name, value in parameters.items() if value != ""}
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = await client.get(url, params=given)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise VerifyError(
                    f"{self._url}: {error or type(error).__name__}; is the cloud's HTTP port there?"
                ) from None
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or attempt == _ATTEMPTS:
                break
            await asyncio.sleep(_PAUSE_S * attempt)
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.status_code != httpx.codes.OK or not isinstance(body, dict):
            detail = body.get("detail", "") if isinstance(body, dict) else "not Tidegate's API"
            raise VerifyError(f"{url}: answered {answer.status_code}: {detail}")
        return body

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=_TIMEOUT_S, transport=self._transport, trust_env=False)


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _refuse(constant: str) -> float:
    raise ValueError(constant)  # NaN and Infinity are not JSON


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
