"""How commands ask a running service: JSON over HTTP, errors as one line."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from runtime.config import ConfigError
from runtime.service import StartError, reason_of

__all__ = ["ask_node", "ask_service"]

_TIMEOUT_S = 120.0
_SERVICE_TIMEOUT_S = 10.0


def ask_node(
    url: str,
    path: str,
    parameters: Mapping[str, str] | None = None,
    *,
    body: Mapping[str, Any] | None = None,
) -> Any:
    """Return what a node answers at `path` below /api/v1.

    Args:
        url: The node's HTTP address, `http://host:port`.
        path: Such as "audit"; its parts are quoted by the caller where they need it.
        parameters: Of the query string.
        body: What to POST, as JSON; None makes it a GET.

    Raises:
        ConfigError: `url` is not an HTTP address.
        StartError: nobody answers, or the node says why not.
    """
    _check(url)
    full = f"{url.rstrip('/')}/api/v1/{path}"
    if parameters:
        full += "?" + urllib.parse.urlencode(parameters)
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(full, data=data, headers=headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - as above
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise StartError(_detail(error)) from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = _reason(error)
        raise StartError(f"{url}: {reason}; is a cloud node serving HTTP there?") from None


def ask_service(url: str, path: str, *, also: int = 200) -> dict[str, Any]:
    """Return what a gateway or a node answers at `path`, such as "status".

    Args:
        url: Its HTTP address, `http://host:port`.
        path: Below it.
        also: A status code besides 200 whose body is an answer.

    Raises:
        ConfigError: `url` is not an HTTP address.
        StartError: nobody answers, or something else.
    """
    _check(url)
    full = f"{url.rstrip('/')}/{path}"
    try:
        with urllib.request.urlopen(full, timeout=_SERVICE_TIMEOUT_S) as answer:  # noqa: S310 - checked above
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != also:
                raise StartError(f"{full}: answered {error.code} {error.reason}") from None
            body = json.load(error)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = _reason(error)
        raise StartError(f"{full}: {reason}; is a gateway or cloud node serving there?") from None
    if not isinstance(body, dict):
        raise StartError(f"{full}: answered something that is not a status")
    return body


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)  # urllib's own errors have one
    return reason_of(inner) if isinstance(inner, Exception) else str(inner)


def _check(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: expected http://host:port, got '{url}'")


def _detail(error: urllib.error.HTTPError) -> str:
    """Return the node's own line on what was wrong."""
    try:
        detail = json.load(error)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = f"{error.url}: answered {error.code} {error.reason}"
    return str(detail)
