"""Rules made ready: which readings concern a rule, their value, and whether it is wrong."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import operator
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cloud.alerts.config import LimitsConfig, RuleConfig
from cloud.fields import MISSING, FieldPath, number
from mqtt.topics import matches

__all__ = ["Bounds", "Rule", "Value", "to_us"]

Value = float | str | None

_Compare = Callable[[Any, Any], bool]
_COMPARE: dict[str, _Compare] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_RATE_UNIT_S = {"second": 1.0, "minute": 60.0, "hour": 3600.0}
_TEXT_CHARS_MAX = 256  # of a value that is kept


def to_us(seconds: float | None) -> int:
    """Return seconds as whole microseconds; None is 0."""
    return round((seconds or 0.0) * 1_000_000)


@dataclass(slots=True, frozen=True)
class Bounds:
    """`LimitsConfig` in the engine's unit."""

    late_after_us: int
    ahead_max_us: int
    grace_us: int
    flap_fires: int
    flap_window_us: int
    flap_quiet_us: int
    forget_after_us: int
    series_max: int

    @classmethod
    def of(cls, limits: LimitsConfig) -> Bounds:
        """Convert a configuration."""
        return cls(
            late_after_us=to_us(limits.late_after_s),
            ahead_max_us=to_us(limits.ahead_max_s),
            grace_us=to_us(limits.grace_s),
            flap_fires=limits.flap_fires,
            flap_window_us=to_us(limits.flap_window_s),
            flap_quiet_us=to_us(limits.flap_quiet_s),
            forget_after_us=to_us(limits.forget_after_s),
            series_max=limits.series_max,
        )


class Rule:
    """One rule, compiled.

    Attributes:
        config: What it was made from.
        name: Its name.
        fingerprint: Changes when anything changes that its state depends on.
        for_us, clear_for_us, window_us, absent_us, repeat_us: Its times, microseconds; 0 = unset.
    """

    __slots__ = (
        "_compare",
        "_device",
        "_limits",
        "_path",
        "_rate_scale",
        "absent_us",
        "clear_for_us",
        "config",
        "fingerprint",
        "for_us",
        "name",
        "repeat_us",
        "window_us",
    )

    def __init__(self, config: RuleConfig) -> None:
        self.config = config
        self.name = config.name
        self.fingerprint = _fingerprint(config)
        self.for_us = to_us(config.for_s)
        self.clear_for_us = to_us(config.clear_for_s)
        self.window_us = to_us(config.window_s)
        self.absent_us = to_us(config.absent_s)
        self.repeat_us = to_us(config.repeat_s)
        self._device = re.compile(fnmatch.translate(config.device))
        self._path = FieldPath.parse(config.field)
        self._rate_scale = _RATE_UNIT_S[config.rate_per] * 1_000_000
        self._compare: _Compare = _COMPARE.get(config.op, operator.ne)
        self._limits = _wrong_limits(config)

    def concerns(self, topic: str, device: str) -> bool:
        """Return True when readings of `device` under `topic` are for this rule."""
        return matches(self.config.topic, topic) and self._device.match(device) is not None

    @property
    def needs_value(self) -> bool:
        """False for an absence rule to which any reading is a sign of life."""
        return self.config.kind != "absence" or bool(self.config.field)

    def measure(self, payload: bytes, document: object) -> Value:
        """Return the value of a payload, whose `json_document` is given; None if it has none."""
        found = self._path.find_in(payload, document)
        if self.config.text is None and self.config.kind != "absence":
            return number(found)
        if found is MISSING:
            return None
        text = found if isinstance(found, str) else json.dumps(found)
        # JSON may have half of a surrogate pair, which no store and no answer can hold
        return text[:_TEXT_CHARS_MAX].encode("utf-8", "replace").decode()

    def rate(self, change: float, span_us: int) -> float:
        """Return a change over a span as the rule's unit has it: per second, minute or hour."""
        return change / span_us * self._rate_scale

    def wrong(self, value: Value, *, latched: bool) -> bool:
        """Return True when `value` is wrong; once it was (`latched`), hysteresis keeps it so."""
        return self._compare(value, self._limits[latched])


def _wrong_limits(config: RuleConfig) -> tuple[Value, Value]:
    """Return what a value is compared with before and after it has become wrong."""
    if config.text is not None:
        return config.text, config.text
    limit = config.value
    if limit is None:
        return None, None
    back = -config.hysteresis if config.op in {">", ">="} else config.hysteresis
    return limit, limit + back


def _fingerprint(config: RuleConfig) -> str:
    values = asdict(config)
    del values["summary"]  # words for people change no state
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
