"""Log lines have fixed keys, take any value, and never wait for the stream behind them."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any

import structlog

from runtime import logs
from runtime.clock import ManualClock
from runtime.logs import LogOutput, LogsConfig, configure_logs, limited
from runtime.metrics import Metrics


class Written:
    """Logging configured onto a text in memory."""

    def __init__(self, **config: str) -> None:
        self.clock = ManualClock(wall_us=1_700_000_000_000_000)
        self.stream = io.StringIO()
        self.output = configure_logs(LogsConfig(**config), stream=self.stream, clock=self.clock)

    def lines(self) -> list[str]:
        assert self.output.flush(60)
        return self.stream.getvalue().splitlines()

    def values(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


def test_fixed_keys_come_first() -> None:
    written = Written(format="json")
    structlog.get_logger(component="uplink").bind(gateway="gw-7").info("connected", port=1883)
    (line,) = written.lines()
    assert list(json.loads(line).items()) == [
        ("ts", "2023-11-14T22:13:20.000000Z"),
        ("level", "info"),
        ("event", "connected"),
        ("component", "uplink"),
        ("gateway", "gw-7"),
        ("port", 1883),
    ]


def test_logfmt_quotes_only_what_could_be_misread() -> None:
    written = Written(format="logfmt")
    log = structlog.get_logger(component="front")
    log.info("x", a="plain", b="two words", c='q"', d="", e="line\nlevel=fake", f=1.5, g=None)
    (line,) = written.lines()
    head, _, rest = line.partition(" component=front ")
    assert head == "ts=2023-11-14T22:13:20.000000Z level=info event=x"
    assert rest == 'a=plain b="two words" c="q\\"" d="" e="line\\nlevel=fake" f=1.5 g=null'


def test_a_list_is_a_list_and_has_an_end() -> None:
    endless: list[object] = ["x" * 1_000, 1, None]
    endless.append(endless)
    written = Written(format="json")
    log = structlog.get_logger(component="a")
    log.info("x", did=["create", "resume"], many=list(range(1_000)), endless=tuple(endless))
    (value,) = written.values()
    assert value["did"] == ["create", "resume"]
    assert value["many"] == [*range(20), "... 980 more"]
    assert [len(str(item)) for item in value["endless"]][:1] == [203]
    assert len(written.lines()[0]) < 1_000
    written = Written(format="logfmt")
    structlog.get_logger(component="a").info("x", did=["create", "resume"])
    assert written.lines()[0].endswith('did=["create", "resume"]')


def test_auto_is_json_when_the_stream_is_no_terminal() -> None:
    written = Written(format="auto")
    structlog.get_logger(component="a").info("x")
    assert written.values()[0]["event"] == "x"


def test_level_decides_what_is_written() -> None:
    written = Written(level="warning", format="json")
    log = structlog.get_logger(component="a")
    log.info("quiet")
    log.warning("loud")
    assert [value["event"] for value in written.values()] == ["loud"]


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_any_value_can_be_logged() -> None:
    written = Written(format="json")
    log = structlog.get_logger(component="a")
    log.info("x", raw=b"\xff", long="y" * 5_000, odd=Hostile(), many=[1], inf=float("inf"))
    (values,) = written.values()
    assert values["raw"] == "b'\\xff'"
    assert len(values["long"]) == 2_003
    assert "Hostile object" in values["odd"]
    assert (values["many"], values["inf"]) == ([1], "inf")


def test_exception_keeps_its_end() -> None:
    written = Written(format="json")
    try:
        Metrics().gauge("x" * 20_000, "not a name", lambda: 1)
    except ValueError:
        structlog.get_logger(component="a").exception("failed")
    (values,) = written.values()
    assert values["level"] == "error"
    assert values["exception"].endswith("is not named tidegate_<part>_<what>_<unit>")
    assert len(values["exception"]) == 8_000


def test_standard_library_records_take_the_same_way() -> None:
    written = Written(format="json")
    logging.getLogger("uvicorn").warning("port %d", 80)
    logging.getLogger("uvicorn").info("quiet")
    (values,) = written.values()
    assert (values["component"], values["text"]) == ("uvicorn", "port 80")


class Blocked(io.StringIO):
    """A pipe nobody reads until `released`."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.released.wait(60)
        return super().write(text)


def test_blocked_stream_drops_and_counts_instead_of_blocking() -> None:
    stream = Blocked()
    output = LogOutput(stream, lines_max=4)
    assert output.write("first")
    assert stream.entered.wait(60)  # the thread hangs in it; the queue is empty
    taken = [output.write(f"line {number}") for number in range(10)]
    assert taken == [True] * 4 + [False] * 6
    stream.released.set()
    assert output.flush(60)
    lines = stream.getvalue().splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(line["event"], line["count"]) for line in told] == [("log_lines_dropped", 6)]
    assert [line for line in lines if not line.startswith("{")] == ["first"] + [
        f"line {number}" for number in range(4)
    ]
    output.close()
    assert not output.write("too late")


def test_broken_stream_ends_nothing() -> None:
    stream = io.StringIO()
    output = LogOutput(stream)
    stream.close()
    output.write("lost")
    assert output.flush(60)
    assert output.dropped == 1
    output.close()


def test_limited_lets_one_line_through_a_period_and_counts_the_rest() -> None:
    written = Written(format="json")
    log = structlog.get_logger(component="front")
    for second in range(25):
        limited(log, "malformed", 10.0).warning("malformed", second=second)
        written.clock.advance(1.0)
    limited(log, "other", 10.0).warning("other")
    assert [(v.get("second"), v.get("suppressed")) for v in written.values()] == [
        (0, None),
        (10, 9),
        (20, 9),
        (None, None),
    ]


def test_limited_remembers_a_bounded_number_of_keys() -> None:
    written = Written(format="json")
    log = structlog.get_logger(component="front")
    for key in range(3_000):
        limited(log, key, 10.0).debug("quiet")
    assert len(logs._state.limits) == logs.LIMITED_KEYS_MAX
    assert written.lines() == []
