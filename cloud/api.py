"""The cloud's HTTP API: devices, readings, gateways, ledger, alerts, partitions, metrics, health.

    app = create_app(ApiParts(node=..., alerts=..., latest=..., storage=..., ...), HttpConfig())

What it shows comes through small Protocols (cloud/views.py); it knows nothing of how a node is
built. An answer that is an error is `{"detail": one line}`: 404 what is not there, 422 what makes
no sense (a parameter nobody knows as well), 503 what cannot be told now.

The API has no log-in: it listens on loopback unless told otherwise. A POST needs a JSON content
type, so that a page of another origin cannot make one.
"""

from __future__ import annotations

import asyncio
import difflib
import glob
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from cloud.alerts.shown import urgency
from cloud.api_config import HttpConfig
from cloud.api_guard import json_body
from cloud.api_latest import latest_routes, value_json
from cloud.api_models import (
    Acknowledgement,
    Alerts,
    Devices,
    Gateways,
    Health,
    Ledger,
    Partitions,
    Problem,
    Readings,
)
from cloud.cluster.alert_peers import AlertPeers
from cloud.console import console_routes
from cloud.database import DatabaseError
from cloud.latest import Latest
from cloud.query import AGGREGATES, QueryError, QueryResult, ReadingsQuery
from cloud.query_format import row_json, step_json
from cloud.query_time import iso, parse_duration, parse_time
from cloud.sinks.contract import SinkUnavailable
from cloud.storage import StorageReader
from cloud.stream.contract import StreamError
from cloud.views import AlertsView, AlertView, NodeView, StatusView
from runtime.clock import Clock
from runtime.metrics import Metrics

__all__ = ["ApiParts", "create_app"]

log = structlog.get_logger(component="api")

QUERIES_AT_ONCE = 2  # each has a thread and a connection
DEVICES_PER_PAGE_MAX = 1_000
EVENTS_PER_PAGE_MAX = 1_000
_EVENT_ID_MAX = (1 << 63) - 1
ROWS_PER_PAGE = 1_000  # unless asked for otherwise
_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem},
    422: {"model": Problem},
    503: {"model": Problem},
}


@dataclass(slots=True, frozen=True)
class ApiParts:
    """What the API needs of its node."""

    node: NodeView
    latest: Latest
    storage: StorageReader
    metrics: Metrics
    clock: Clock
    alerts: AlertsView | None = None  # None = the node has no alerts part
    alert_peers: AlertPeers | None = None  # None = there are no other nodes
    figures: Callable[[], Mapping[str, Any]] = dict  # more for `/status`, by part
    routers: Sequence[APIRouter] = ()  # more paths below /api/v1


def create_app(parts: ApiParts, config: HttpConfig) -> FastAPI:
    """Return the application: API, telemetry, documentation and console."""
    app = FastAPI(
        title="Tidegate",
        description="Telemetry from MQTT devices through gateways: what came, what is on its way, "
        "what was lost and why.",
        docs_url=None,  # FastAPI's own page loads from other hosts; the console has one
        redoc_url=None,
        dependencies=[Depends(_known_parameters)],
    )
    app.include_router(latest_routes(parts.node, parts.latest), prefix="/api/v1", tags=["readings"])
    app.include_router(_devices(parts, config), prefix="/api/v1", tags=["readings"])
    app.include_router(_node(parts), prefix="/api/v1", tags=["node"])
    app.include_router(_alerts(parts), prefix="/api/v1", tags=["alerts"])
    for router in parts.routers:
        app.include_router(router, prefix="/api/v1", tags=["accounting"])
    app.include_router(_telemetry(parts), tags=["telemetry"])
    app.include_router(console_routes(), include_in_schema=False)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameters)
    app.add_exception_handler(StreamError, _on_unreadable)
    app.add_exception_handler(DatabaseError, _on_unreadable)
    app.add_exception_handler(Exception, _on_failure)
    return app


# ---- devices and readings ------------------------------------------------------------------------


def _devices(parts: ApiParts, config: HttpConfig) -> APIRouter:
    router = APIRouter(responses=_ERRORS)
    queries = asyncio.Semaphore(QUERIES_AT_ONCE)
    rows_max = config.rows_max

    @router.get("/devices", response_model=Devices)
    async def devices(
        match: Annotated[str, Query(description="A glob of device ids.", max_length=256)] = "*",
        after: Annotated[str, Query(description="`next` of the page before.")] = "",
        limit: Annotated[int, Query(ge=1, le=DEVICES_PER_PAGE_MAX)] = 100,
        values: Annotated[bool, Query(description="With latest values.")] = False,
    ) -> Response:
        """List devices by id, each with its newest reading's gateway and time."""
        stored = await parts.node.stored_positions() if values else {}
        found = parts.latest.devices(match=match, after=after, limit=limit + 1)
        page = found[:limit]
        shown: list[dict[str, Any]] = []
        for one in page:
            device: dict[str, Any] = {
                "device": one.device,
                "gateway": one.gateway,
                "time": iso(one.time_us),
                "time_us": one.time_us,
                "received_us": one.received_us,
                "topics": one.topics,
            }
            if values:
                device["values"] = [
                    value_json(reading, stored) for reading in parts.latest.device(one.device)
                ]
            shown.append(device)
        following = page[-1].device if len(found) > limit else ""
        return _json({"devices": shown, "next": following})

    @router.get("/devices/{device:path}/readings", response_model=Readings)
    async def readings(
        device: str,
        since: Annotated[str, Query(description="From: -2h, an ISO time, epoch seconds.")] = "",
        until: Annotated[str, Query(description="Up to; as `since`, or now.")] = "",
        topic: Annotated[str, Query(description="An MQTT topic filter.")] = "#",
        field: Annotated[
            str | None, Query(description="A value in JSON payloads, such as sensors[0].temp.")
        ] = None,
        every: Annotated[str, Query(description="Aggregate in steps: 10s, 5m, 1h.")] = "",
        agg: Annotated[str, Query(description=" or ".join(AGGREGATES))] = "mean",
        order: Annotated[Literal["asc", "desc"], Query(description="By time.")] = "desc",
        limit: Annotated[int | None, Query(ge=1, description="At most http.rows_max.")] = None,
        after: Annotated[str, Query(description="`next` of the page before.")] = "",
    ) -> Response:
        """Return stored readings of a device, or aggregates of them with `every`."""
        now_us = parts.clock.wall_us()
        if limit is not None and limit > rows_max:
            raise HTTPException(422, f"limit: at most {rows_max} rows at once, got {limit}")
        try:
            query = ReadingsQuery(
                devices=(glob.escape(device),),
                topic=topic,
                start_us=_named("since", since, lambda: parse_time(since, now_us)),
                end_us=_named("until", until, lambda: parse_time(until, now_us)),
                field=field,
                every_us=_named("every", every, lambda: parse_duration(every)),
                aggregate=agg,
                newest_first=order == "desc",
                limit=limit or min(ROWS_PER_PAGE, rows_max),
                after=after,
            )
        except QueryError as error:
            raise HTTPException(422, str(error)) from None
        try:
            async with queries:
                result = await parts.storage.ask(query, timeout_s=config.query_timeout_s)
                body = await asyncio.to_thread(_readings_body, device, result)
        except (QueryError, DatabaseError) as error:
            raise HTTPException(503, str(error)) from None
        return Response(body, media_type="application/json")

    return router


def _named(name: str, text: str, parse: Callable[[], int]) -> int | None:
    """Return what a parameter says, or None when it was not given."""
    if not text:
        return None
    try:
        return parse()
    except ValueError as error:
        raise HTTPException(422, f"{name}: {error}") from None


def _readings_body(device: str, result: QueryResult) -> bytes:
    rows = [*map(row_json, result.rows), *map(step_json, result.steps)]
    answer = {"device": device, "readings": rows, "next": result.next}
    return json.dumps(answer, allow_nan=False).encode()


# ---- the node ------------------------------------------------------------------------------------


def _node(parts: ApiParts) -> APIRouter:
    router = APIRouter(responses={503: {"model": Problem}})

    @router.get("/gateways")
    async def gateways() -> Gateways:
        """Return every gateway: link, backlog, lag."""
        return Gateways(gateways=list(await parts.node.gateways()))

    @router.get("/ledger")
    async def ledger(
        gateway: Annotated[str | None, Query(description="Only this one.")] = None,
    ) -> Ledger:
        """Return where every assigned reading is: stored, given up, waiting, or missing."""
        views = [one for one in await parts.node.ledger() if gateway in {None, one.gateway}]
        if gateway is not None and not views:
            raise HTTPException(404, f"gateway '{gateway}' is not in the ledger")
        return Ledger(balanced=all(one.balanced for one in views), ledger=views)

    @router.get("/partitions")
    async def partitions() -> Partitions:
        """Return the stream's partitions and how far each sink is."""
        return Partitions(partitions=list(await parts.node.partitions()))

    return router


# ---- alerts --------------------------------------------------------------------------------------


def _alerts(parts: ApiParts) -> APIRouter:
    router = APIRouter(responses=_ERRORS)

    @router.get("/alerts", response_model_exclude_none=False)
    async def alerts(
        view: Annotated[
            Literal["active", "history"], Query(description="What is on, or what happened.")
        ] = "active",
        rule: Annotated[str | None, Query(description="Only of this rule.")] = None,
        device: Annotated[str | None, Query(description="Only of this device.")] = None,
        before: Annotated[
            int | None, Query(le=_EVENT_ID_MAX, description="`next` of the page before.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=EVENTS_PER_PAGE_MAX)] = 100,
    ) -> Alerts:
        """Return alerts that are pending or firing, or the history of alerts, newest first.

        In a cluster: of all nodes.
        """
        if parts.alerts is None:
            return Alerts(alerts=[]) if view == "active" else Alerts(events=[])
        if view == "active":
            found = parts.alerts.active(rule, device)
            silent: list[str] = []
            if parts.alert_peers is not None:
                others, silent = await parts.alert_peers.active(rule, device, limit)
                found = sorted((*found, *others), key=urgency)
            return Alerts(alerts=found[:limit], silent=silent)
        events = list(
            await parts.alerts.history(rule=rule, device=device, before=before, limit=limit + 1)
        )
        following = events[limit - 1].event_id if len(events) > limit else None
        return Alerts(events=events[:limit], next=following)

    @router.post("/alerts/{alert_id}/ack", dependencies=[Depends(json_body)])
    async def acknowledge(alert_id: str, acknowledgement: Acknowledgement) -> AlertView:
        """Take a firing alert on: it is not repeated any more."""
        done = None
        if parts.alerts is not None:
            try:
                said = (alert_id, acknowledgement.by, acknowledgement.note)
                done = await parts.alerts.acknowledge(*said)
                if done is None and parts.alert_peers is not None:
                    done = await parts.alert_peers.acknowledge(*said)
            except SinkUnavailable as error:
                raise HTTPException(503, str(error)) from None
        if done is None:
            raise HTTPException(404, f"no alert '{alert_id}' is firing; see /api/v1/alerts")
        return done

    return router


# ---- telemetry -----------------------------------------------------------------------------------


def _telemetry(parts: ApiParts) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Return figures in Prometheus' format."""
        body, content_type = parts.metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    @router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> Response:
        """Tell whether the process should be left running."""
        return _verdict(parts.node.health())

    @router.get("/readyz", response_model=Health, responses={503: {"model": Health}})
    async def readyz() -> Response:
        """Tell whether the node can take batches now."""
        return _verdict(parts.node.ready())

    @router.get("/status", responses={200: {"model": StatusView}})
    async def status() -> Response:
        """Return figures of the node since its start, of its parts, and of each gateway's link.

        Of gateways nothing while the stream cannot be read: `/readyz` says why.
        """
        try:
            known = await parts.node.gateways()
        except StreamError:
            known = ()
        gateways = {
            one.gateway: {
                "connected": one.connected,
                "node": one.node,
                "backlog_readings": one.backlog_readings,
                "lag_s": one.lag_s,
                "readings": one.readings,
            }
            for one in known
        }
        active = parts.alerts.active() if parts.alerts is not None else ()
        firing = sum(one.state == "firing" for one in active)
        return _json(
            {
                **asdict(parts.node.status()),
                "gateways": gateways,
                "alerts": {"firing": firing, "pending": len(active) - firing},
                **parts.figures(),
            }
        )

    return router


def _verdict(reasons: Sequence[str]) -> Response:
    return _json({"ok": not reasons, "reasons": list(reasons)}, 503 if reasons else 200)


def _json(value: Any, status: int = 200) -> Response:
    """Return an answer made here, with the checks of a model left out."""
    body = json.dumps(value, allow_nan=False).encode()
    return Response(body, status, media_type="application/json")


# ---- what is refused -----------------------------------------------------------------------------


async def _known_parameters(request: Request) -> None:
    """Refuse a parameter that the path does not have: a typing error must not change a question."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return
    known = {parameter.alias for parameter in dependant.query_params}
    for name in request.query_params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there is {_listed(known)}"
            raise HTTPException(422, f"unknown parameter '{name[:100]}'; {hint}")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    detail = error.detail
    if error.status_code == 404 and detail == "Not Found":
        detail = f"no such path: {request.url.path}; see /docs"
    return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)


async def _on_bad_parameters(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"query", "body", "path"})
    given = first.get("input")
    got = f", got {given!r}"[:120] if isinstance(given, str | int | float) else ""
    return JSONResponse({"detail": f"{where or 'body'}: {first['msg']}{got}"}, 422)


async def _on_unreadable(_request: Request, error: Exception) -> Response:
    """Say why what was asked for cannot be read now."""
    return JSONResponse({"detail": str(error)}, 503)


async def _on_failure(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return JSONResponse({"detail": "this failed; the log says why"}, 500)
