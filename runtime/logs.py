"""Logs: one line an event, the same keys everywhere, written by a thread that may wait alone.

Every line has `ts` (UTC, ISO 8601), `level`, `event` (snake case: what happened) and `component`;
then what the logger was bound to (`gateway`, `client_id`, ...) and what the call adds.

    log = structlog.get_logger(component="uplink")
    log.info("connected", gateway="gw-7", endpoint="mqtt://cloud:2883")

Invariants:
- A log call never blocks on the terminal, pipe or disk behind it: lines wait in a bounded queue;
  when that is full they are dropped, counted, and the count is logged.
- A log call never raises because of what is logged: unknown objects are written by `repr`, long
  texts and lists are cut, and control characters cannot begin a new line.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog

from runtime.clock import Clock, SystemClock
from runtime.config import setting

__all__ = ["LogOutput", "LogsConfig", "configure_logs", "limited"]

LEVELS = ("debug", "info", "warning", "error")
FIRST_KEYS = ("ts", "level", "event", "component")
LINES_MAX = 10_000  # waiting for the stream; about 2 MB
TEXT_CHARS_MAX = 2_000  # of one value
ITEMS_MAX, ITEM_CHARS_MAX = 20, 200  # of a list
EXCEPTION_CHARS_MAX = 8_000
LIMITED_KEYS_MAX = 1_024
STOP_TIMEOUT_S = 1.0  # how long a stream that takes nothing may delay the end of the process


@dataclass(slots=True, frozen=True)
class LogsConfig:
    """What is logged and how it is written."""

    level: str = setting("info", choices=LEVELS, help="The least severe level that is written.")
    format: str = setting(
        "auto",
        choices=("auto", "json", "logfmt"),
        help="How a line is written; auto is logfmt on a terminal and JSON elsewhere.",
    )


class LogOutput:
    """The thread that writes log lines to one stream.

    Attributes:
        dropped: Lines that found the queue full since the start.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        lines_max: int = LINES_MAX,
        render: Callable[[Mapping[str, Any]], str] = json.dumps,
    ) -> None:
        """Begin to write to `stream`; `render` writes the line that tells of dropped ones."""
        self.dropped = 0
        self._stream = stream
        self._lines_max = lines_max
        self._render = render
        self._lines: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def write(self, line: str) -> bool:
        """Queue one line without its newline; False when the queue is full and it was dropped."""
        if self._closed or self._lines.qsize() >= self._lines_max:
            self.dropped += 1
            return False
        self._lines.put(line)
        return True

    def flush(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Wait until what was queued before is written; False if `timeout_s` was not enough."""
        written = threading.Event()
        self._lines.put(written)
        return written.wait(timeout_s)

    def close(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Write what is queued, for at most `timeout_s`, and end the thread."""
        if not self._closed:
            self._closed = True
            self._lines.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        reported = 0
        while (item := self._lines.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            text = item + "\n"
            if self.dropped > reported and self._lines.qsize() < self._lines_max // 2:
                lost, reported = self.dropped - reported, self.dropped
                text += self._render(_own_line("log_lines_dropped", count=lost)) + "\n"
            try:
                self._stream.write(text)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # the stream is gone: there is nowhere left to say so
                self.dropped += 1


class _Limit:
    """How often one key was asked for since its last line."""

    __slots__ = ("allowed_from_s", "suppressed")

    def __init__(self) -> None:
        self.allowed_from_s = 0.0
        self.suppressed = 0


class _Silent:
    """Takes the calls of a logger and does nothing."""

    def _nothing(self, event: str, *args: object, **values: object) -> None:
        pass

    debug = info = warning = error = exception = _nothing


_SILENT = _Silent()


class _State:
    """What `configure_logs` sets for the process."""

    def __init__(self) -> None:
        self.clock: Clock = SystemClock()
        self.output: LogOutput | None = None
        self.limits: OrderedDict[Hashable, _Limit] = OrderedDict()


_state = _State()


def configure_logs(
    config: LogsConfig, *, stream: TextIO | None = None, clock: Clock | None = None
) -> LogOutput:
    """Set up logging for this process; a second call replaces the first.

    Lines of the standard library's loggers (warnings and above) take the same way.

    Args:
        config: Level and format.
        stream: Where lines go; standard error by default.
        clock: Gives `ts` and the time for `limited`; the system's by default.

    Returns:
        The output, to flush or close; the process's end needs neither, except to see last lines.
    """
    target = stream if stream is not None else sys.stderr
    if _state.output is not None:
        _state.output.close()
    as_json = config.format == "json" or (config.format == "auto" and not target.isatty())
    render = json.dumps if as_json else _logfmt
    output = _state.output = LogOutput(target, render=render)
    _state.clock = clock or SystemClock()
    _state.limits.clear()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _ordered,
            lambda _logger, _method, values: render(values),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(config.level),
        logger_factory=lambda *_args: _LineLogger(output),
        cache_logger_on_first_use=False,  # module loggers exist before this is called
    )
    root = logging.getLogger()
    root.handlers = [_StandardHandler()]
    root.setLevel(max(logging.WARNING, getattr(logging, config.level.upper())))
    return output


def limited(logger: Any, key: Hashable, every_s: float) -> Any:
    """Return `logger` at most once in `every_s` for `key`, and a silent one in between.

        limited(log, ("malformed", peer), 10.0).warning("malformed_packet", peer=peer)

    The next line that is let through carries `suppressed`: how many were not. The 1,024 most
    recent keys are remembered.

    Args:
        logger: A structlog logger.
        key: What is limited, such as an event with its peer.
        every_s: The least time between two lines, seconds.
    """
    now_s = _state.clock.monotonic_s()
    limits = _state.limits
    limit = limits.get(key)
    if limit is None:
        limit = limits[key] = _Limit()
        if len(limits) > LIMITED_KEYS_MAX:
            limits.popitem(last=False)
    elif now_s < limit.allowed_from_s:
        limit.suppressed += 1
        return _SILENT
    limits.move_to_end(key)
    limit.allowed_from_s = now_s + every_s
    suppressed, limit.suppressed = limit.suppressed, 0
    return logger.bind(suppressed=suppressed) if suppressed else logger


class _LineLogger:
    """The innermost logger of structlog: takes finished lines."""

    def __init__(self, output: LogOutput) -> None:
        write = output.write

        def message(line: str) -> None:
            write(line)

        self.debug = self.info = self.warning = self.error = self.critical = message
        self.msg = self.log = self.exception = self.fatal = self.failure = message


class _StandardHandler(logging.Handler):
    """Brings the standard library's records into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(component=record.name)
        values: dict[str, object] = {"exc_info": record.exc_info} if record.exc_info else {}
        method = log.error if record.levelno >= logging.ERROR else log.warning
        method("message", text=record.getMessage(), **values)


def _now() -> str:
    moment = datetime.fromtimestamp(_state.clock.wall_us() / 1_000_000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _own_line(event: str, **values: object) -> Mapping[str, Any]:
    return {"ts": _now(), "level": "warning", "event": event, "component": "logs", **values}


def _ordered(_logger: object, _method: str, values: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Put the fixed keys first, in their order, and bound every value."""
    values["ts"] = _now()
    ordered = {key: _bounded(key, values.pop(key, "")) for key in FIRST_KEYS}
    ordered.update((key, _bounded(key, value)) for key, value in values.items())
    return ordered


def _bounded(key: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        items = [_bounded_one(item, ITEM_CHARS_MAX) for item in value[:ITEMS_MAX]]
        return items if len(value) <= ITEMS_MAX else [*items, f"... {len(value) - ITEMS_MAX} more"]
    if key == "exception":  # its end says what went wrong
        return _text(value)[-EXCEPTION_CHARS_MAX:]
    return _bounded_one(value, TEXT_CHARS_MAX)


def _bounded_one(value: Any, chars_max: int) -> Any:
    if value is None or isinstance(value, bool | int) or _finite(value):
        return value
    text = _text(value)
    return text if len(text) <= chars_max else text[:chars_max] + "..."


def _text(value: object) -> str:
    try:
        return value if isinstance(value, str) else str(value)
    except Exception:  # noqa: BLE001 - a foreign object's own __str__ may raise anything
        return object.__repr__(value)


def _finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _logfmt(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_logfmt_value(value)}" for key, value in values.items())


def _logfmt_value(value: Any) -> str:
    """Write a value bare when nothing in it could be misread, else as a JSON string."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = value.isprintable() and not any(character in value for character in ' "=\\')
    return value if plain and value else json.dumps(value, ensure_ascii=not value.isprintable())
