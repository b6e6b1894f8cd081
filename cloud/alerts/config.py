"""What the alerts part is told: rules as data, where alerts go, and the bounds on time and state.

    [[alerts.rule]]
    name = "freezer-warm"
    severity = "critical"
    topic = "devices/+/temperature"
    kind = "threshold"
    op = ">"
    value = -15
    hysteresis = 1.5
    for_s = 300

A rule that cannot be used is refused at start with one line that names the rule and the key.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

from cloud.fields import FieldError, FieldPath
from mqtt.topics import topic_filter_fault
from runtime.config import section, setting, tables

__all__ = ["OPERATORS", "SEVERITIES", "AlertsConfig", "LimitsConfig", "RuleConfig", "WebhookConfig"]

SEVERITIES = ("info", "warning", "critical")
OPERATORS = (">", ">=", "<", "<=", "==", "!=")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # one topic level, one metric label
# which keys a kind has beyond the common ones; True: it cannot do without
_KEYS: dict[str, dict[str, bool]] = {
    "threshold": {"op": True, "value": False, "text": False, "hysteresis": False, "for_s": False},
    "rate": {
        "op": True,
        "value": True,
        "hysteresis": False,
        "for_s": False,
        "window_s": True,
        "rate_per": False,
    },
    "absence": {"absent_s": True},
}
_UNSET: dict[str, object] = {
    "op": "",
    "value": None,
    "text": None,
    "hysteresis": 0.0,
    "for_s": 0.0,
    "window_s": None,
    "rate_per": "second",
    "absent_s": None,
}


@dataclass(slots=True, frozen=True)
class RuleConfig:
    """One rule: which readings it looks at, what is wrong with them, and for how long."""

    name: str = setting(help="Names the rule: letters, digits, `_`, `.`, `-`; at most 64.")
    kind: str = setting(
        choices=tuple(_KEYS),
        help="threshold compares a value, rate its change over a window, absence waits for one.",
    )
    severity: str = setting("warning", choices=SEVERITIES, help="How bad it is.")
    device: str = setting("*", help="Devices it is for, as a glob: `*`, `?`, `[a-f]`.")
    topic: str = setting("#", help="Topics it is for, as an MQTT topic filter.")
    field: str = setting(
        "",
        help="Where the value is in a JSON payload, such as `sensors[0].temp`; empty means the "
        "whole payload is the value.",
    )
    by: str = setting(
        "device",
        choices=("device", "topic"),
        help="One alert for each device, or for each topic of a device.",
    )
    op: str = setting("", choices=OPERATORS, help="How the value compares when it is wrong.")
    value: float | None = setting(
        None, help="What a threshold compares with; for rate, the change in one `rate_per`."
    )
    text: str | None = setting(None, help="In place of `value`: a text to be `==` or `!=` to.")
    hysteresis: float = setting(
        0.0, minimum=0, help="How far back past `value` it has to go to be well again."
    )
    for_s: float = setting(
        0.0, unit="s", minimum=0, maximum=604_800, help="How long it has to be wrong to fire."
    )
    clear_for_s: float = setting(
        0.0, unit="s", minimum=0, maximum=604_800, help="How long it has to be well to resolve."
    )
    window_s: float | None = setting(
        None,
        unit="s",
        minimum=1,
        maximum=86_400,
        help="rate: against the oldest reading of this window, if it is at least half as old.",
    )
    rate_per: str = setting(
        "second", choices=("second", "minute", "hour"), help="rate: the unit of time of `value`."
    )
    absent_s: float | None = setting(
        None, unit="s", minimum=1, maximum=31_536_000, help="absence: fires after so long without."
    )
    repeat_s: float = setting(
        0.0,
        unit="s",
        minimum=0,
        maximum=604_800,
        help="Tell again this often while it fires and nobody has acknowledged it; 0 is never.",
    )
    summary: str = setting("", help="A sentence for people, sent along with the alert.")

    def __post_init__(self) -> None:
        """Check the keys against each other; raises ValueError with rule and key."""
        for key, problem in self._problems():
            raise ValueError(f"rule '{self.name}': {key}: {problem}")

    def _problems(self) -> list[tuple[str, str]]:
        problems: list[tuple[str, str]] = []
        if not _NAME.fullmatch(self.name):
            problems.append(("name", "expected 1 to 64 letters, digits, '_', '.' or '-'"))
        if not self.device:
            problems.append(("device", "expected a glob such as 'boiler-*', got nothing"))
        fault = topic_filter_fault(self.topic, shared=False)
        if fault is not None:
            problems.append(("topic", fault.detail))
        try:
            FieldPath.parse(self.field)
        except FieldError as error:
            problems.append(("field", str(error)))
        known = _KEYS[self.kind]
        for key, unset in _UNSET.items():
            given = getattr(self, key) != unset
            if given and key not in known:
                problems.append((key, f"a rule of kind '{self.kind}' has no such key"))
            elif known.get(key) and not given:
                problems.append((key, f"missing; a rule of kind '{self.kind}' needs it"))
        return problems or self._comparison_problems()

    def _comparison_problems(self) -> list[tuple[str, str]]:
        if self.kind == "absence":
            return []
        if self.text is not None:
            if self.value is not None:
                return [("text", "give either 'value' or 'text'")]
            if self.op not in {"==", "!="}:
                return [("op", f"a text is compared by '==' or '!=', got '{self.op}'")]
        elif self.value is None:
            return [("value", "missing; give a number, or 'text' for a text")]
        elif not math.isfinite(self.value):
            return [("value", f"expected a finite number, got {self.value}")]
        if self.op in {"==", "!="} and self.hysteresis:
            return [("hysteresis", f"'{self.op}' has none; leave it out")]
        return []


@dataclass(slots=True, frozen=True)
class WebhookConfig:
    """One place that every transition of an alert is posted to, as JSON (docs/alerts.md)."""

    name: str = setting(help="Names it in logs and metrics; keep it over restarts.")
    url: str = setting(help="Where to POST: http:// or https://.")
    format: str = setting(
        "tidegate",
        choices=("tidegate", "alertmanager"),
        help="The body: 'alertmanager' is what Prometheus Alertmanager takes at /api/v2/alerts.",
    )
    severities: tuple[str, ...] = setting((), help="Only alerts of these severities; empty is all.")
    token: str = setting("", secret=True, help="Sent as `Authorization: Bearer`.")
    timeout_s: float = setting(
        10.0, unit="s", minimum=0.1, maximum=120, help="How long one attempt may take."
    )

    def __post_init__(self) -> None:
        """Check name, address and severities; raises ValueError with webhook and key."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"webhook '{self.name}': name: expected letters, digits, '_', '.', '-'"
            )
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"webhook '{self.name}': url: expected http://... or https://...")
        for severity in self.severities:
            if severity not in SEVERITIES:
                raise ValueError(
                    f"webhook '{self.name}': severities: '{severity}' is none of "
                    + ", ".join(SEVERITIES)
                )


@dataclass(slots=True, frozen=True)
class LimitsConfig:
    """Bounds on time, flapping and what is kept."""

    late_after_s: float = setting(
        60.0,
        unit="s",
        minimum=0,
        maximum=86_400,
        help="A reading this much older than its arrival is history: it fires nothing. So is one "
        "that its gateway marks as historical, whatever its age.",
    )
    ahead_max_s: float = setting(
        30.0,
        unit="s",
        minimum=0,
        maximum=3_600,
        help="A reading this far in the future has a wrong clock: it changes nothing.",
    )
    grace_s: float = setting(
        0.5,
        unit="s",
        minimum=0,
        maximum=1.5,
        help="How long after a deadline readings from before it are waited for.",
    )
    flap_fires: int = setting(
        5, minimum=2, maximum=100, help="Firing this often within `flap_window_s` is flapping."
    )
    flap_window_s: float = setting(
        600.0, unit="s", minimum=1, maximum=86_400, help="The time in which firings are counted."
    )
    flap_quiet_s: float = setting(
        300.0,
        unit="s",
        minimum=1,
        maximum=86_400,
        help="A flapping alert resolves only after being well for so long.",
    )
    forget_after_s: float = setting(
        2_592_000.0,
        unit="s",
        minimum=60,
        help="A device without readings for so long is forgotten, and its alert resolved.",
    )
    series_max: int = setting(
        100_000, minimum=1, help="Pairs of rule and device kept; further ones are not watched."
    )
    history_max: int = setting(100_000, minimum=100, help="Transitions kept, the newest.")
    outbox_max: int = setting(
        10_000, minimum=100, help="Messages kept while a webhook is out of reach, the newest."
    )


@dataclass(slots=True, frozen=True)
class AlertsConfig:
    """The table `[alerts]`."""

    rule: tuple[RuleConfig, ...] = tables(RuleConfig, help="Rules, one table each.")
    webhook: tuple[WebhookConfig, ...] = tables(WebhookConfig, help="Webhooks, one table each.")
    limits: LimitsConfig = section(LimitsConfig, help="Bounds on time, flapping and state.")

    def __post_init__(self) -> None:
        """Refuse a name twice; raises ValueError."""
        for what, names in (
            ("rule", [rule.name for rule in self.rule]),
            ("webhook", [webhook.name for webhook in self.webhook]),
        ):
            for name, count in Counter(names).items():
                if count > 1:
                    raise ValueError(f"{what} '{name}': name: there are {count} of that name")
