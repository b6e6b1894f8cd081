"""A rule that cannot be used is refused in one line that names the rule and the key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud.alerts.config import AlertsConfig
from runtime.config import ConfigError, load, section


@dataclass(slots=True, frozen=True)
class Root:
    alerts: AlertsConfig = section(AlertsConfig, help="Alerts.")


def loaded(tmp_path: Path, text: str) -> AlertsConfig:
    file = tmp_path / "cloud.toml"
    file.write_text(text)
    return load(Root, file=file).alerts


def rule(**keys: object) -> str:
    """Return a rule as TOML: a good threshold rule changed by `keys`; None leaves one out."""
    values: dict[str, object] = {"name": "hot", "kind": "threshold", "op": ">", "value": 30, **keys}
    lines = [f"{key} = {value!r}" for key, value in values.items() if value is not None]
    return "[[alerts.rule]]\n" + "\n".join(lines) + "\n"


def test_rules_webhooks_and_limits_are_read(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        rule(for_s=300, hysteresis=1.5, topic="devices/+/temp", field="a[0].b")
        + rule(name="gone", kind="absence", op=None, value=None, absent_s=60)
        + '[[alerts.webhook]]\nname = "pager"\nurl = "http://127.0.0.1:9/x"\n'
        + "[alerts.limits]\nlate_after_s = 5\n",
    )
    assert [(one.name, one.kind, one.for_s) for one in config.rule] == [
        ("hot", "threshold", 300.0),
        ("gone", "absence", 0.0),
    ]
    assert config.webhook[0].timeout_s == 10.0
    assert config.limits.late_after_s == 5.0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (rule(name="a/b"), "rule 'a/b': name: expected 1 to 64 letters"),
        (rule(device=""), "rule 'hot': device: expected a glob"),
        (rule(topic="a/#/b"), "rule 'hot': topic: "),
        (rule(field="a..b"), "rule 'hot': field: 'a..b' is no path at '..b'"),
        (rule(value=None), "rule 'hot': value: missing"),
        (rule(op=None), "rule 'hot': op: missing; a rule of kind 'threshold' needs it"),
        (rule(text="on"), "rule 'hot': text: give either 'value' or 'text'"),
        (rule(value=None, text="on"), "rule 'hot': op: a text is compared by '==' or '!='"),
        (rule(op="==", hysteresis=1), "rule 'hot': hysteresis: '==' has none"),
        (rule(absent_s=5), "rule 'hot': absent_s: a rule of kind 'threshold' has no such key"),
        (rule(kind="rate"), "rule 'hot': window_s: missing; a rule of kind 'rate' needs it"),
        (rule(kind="absence", op=None, value=None), "rule 'hot': absent_s: missing"),
        (rule(kind="absence", absent_s=5), "rule 'hot': op: a rule of kind 'absence' has no such"),
        (rule(value=1e400).replace("inf", "1e400"), "rule 'hot': value: expected a finite number"),
        (rule() + rule(), "alerts: rule 'hot': name: there are 2 of that name"),
        (rule(op="=>"), "alerts.rule[1]: op: expected one of '>'"),
        (rule(vaule=3), "unknown key 'vaule'; did you mean 'value'?"),
        (rule(for_s=-1), "for_s: expected a number of s from 0"),
        (rule(name=None), "'name' is missing"),
        (
            '[[alerts.webhook]]\nname = "p"\nurl = "ftp://x"\n',
            "webhook 'p': url: expected http://... or https://...",
        ),
        (
            '[[alerts.webhook]]\nname = "p"\nurl = "http://x"\nseverities = ["bad"]\n',
            "webhook 'p': severities: 'bad' is none of info, warning, critical",
        ),
    ],
)
def test_bad_rule_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text)
    (problem,) = raised.value.problems
    assert "\n" not in problem
    assert line in problem
    assert problem.startswith(str(tmp_path / "cloud.toml"))
