"""How commands ask a running cloud node: JSON over its HTTP API, errors as one line."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from runtime.config import ConfigError
from runtime.service import StartError

__all__ = ["ask_node"]

_TIMEOUT_S = 120.0


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
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: expected http://host:port, got '{url}'")
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
        reason = getattr(error, "reason", error)
        raise StartError(f"{url}: {reason}; is a cloud node serving HTTP there?") from None


def _detail(error: urllib.error.HTTPError) -> str:
    """Return the node's own line on what was wrong."""
    try:
        detail = json.load(error)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = f"{error.url}: answered {error.code} {error.reason}"
    return str(detail)
