"""Rules on topics as tables, and that what they allow for subscribing is never too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt.broker.access.config import AccessConfig, RuleConfig
from mqtt.broker.access.rules import Identity, RuleSet, covers, overlaps
from mqtt.topics import matches

DEVICE = Identity("pump-3")


def rules(*configs: RuleConfig, preset: str = "open") -> RuleSet:
    return RuleSet(AccessConfig(rules=configs, preset=preset))


def test_without_rules_everything_is_allowed() -> None:
    assert rules().allows(DEVICE, "publish", "any/thing")
    assert rules().allows(DEVICE, "subscribe", "#")


def test_what_no_rule_matches_is_refused() -> None:
    some = rules(RuleConfig(topics=("a/#",)))
    assert some.allows(DEVICE, "publish", "a/b")
    assert not some.allows(DEVICE, "publish", "b")


def test_the_first_match_decides() -> None:
    some = rules(
        RuleConfig(effect="deny", topics=("a/secret/#",)),
        RuleConfig(topics=("a/#",)),
    )
    assert some.allows(DEVICE, "publish", "a/b")
    assert not some.allows(DEVICE, "publish", "a/secret")
    assert not some.allows(DEVICE, "publish", "a/secret/x")


@pytest.mark.parametrize("topic_filter", ["a/#", "#", "a/+/x", "+/secret/#", "a/secret"])
def test_a_filter_that_reaches_what_is_denied_is_refused(topic_filter: str) -> None:
    some = rules(RuleConfig(effect="deny", topics=("a/secret/#",)), RuleConfig(topics=("#",)))
    assert not some.allows(DEVICE, "subscribe", topic_filter)
    assert some.allows(DEVICE, "subscribe", "a/+") is False
    assert some.allows(DEVICE, "subscribe", "b/#")


def test_actions_are_told_apart() -> None:
    some = rules(RuleConfig(action="subscribe", topics=("a",)))
    assert some.allows(DEVICE, "subscribe", "a")
    assert not some.allows(DEVICE, "publish", "a")


@pytest.mark.parametrize(
    ("who", "identity", "is_concerned"),
    [
        ("anonymous", Identity("c"), True),
        ("anonymous", Identity("c", user="u"), False),
        ("authenticated", Identity("c", name="n"), True),
        ("authenticated", Identity("c"), False),
        ("local", Identity("c", is_local=True), True),
        ("local", Identity("c"), False),
        ("user:al*", Identity("c", user="alice"), True),
        ("user:al*", Identity("al"), False),
        ("client:dev-?", Identity("dev-1"), True),
        ("client:dev-?", Identity("dev-12"), False),
        ("name:gw", Identity("c", name="gw"), True),
        ("user:ops[1]", Identity("c", user="ops[1]"), True),  # no other sign means anything
        ("user:ops[1]", Identity("c", user="ops1"), False),
    ],
)
def test_whom_a_rule_concerns(who: str, identity: Identity, is_concerned: bool) -> None:
    assert rules(RuleConfig(who=(who,), topics=("#",))).allows(identity, "publish", "t") is (
        is_concerned
    )


@pytest.mark.parametrize(
    ("pattern", "identity", "topic", "allowed"),
    [
        ("devices/%c/#", Identity("pump-3"), "devices/pump-3/t", True),
        ("devices/%c/#", Identity("pump-3"), "devices/pump-33/t", False),
        ("users/%u", Identity("c", user="alice"), "users/alice", True),
        ("users/%u", Identity("c"), "users/", False),  # nobody vouched for a name
        ("gw/%n/x", Identity("c", name="hall"), "gw/hall/x", True),
        ("x-%c-y", Identity("1"), "x-1-y", True),
        ("up/%g", Identity("tidegate-hall-7"), "up/hall-7", True),
        ("up/%g", Identity("tidegate-hall-7", user="other"), "up/hall-7", False),
        ("up/%g", Identity("x", name="hall-7"), "up/hall-7", True),
        ("a/%c", Identity("%u", user="root"), "a/root", False),  # a value is not expanded again
        ("a/%c", Identity("%u", user="root"), "a/%u", True),
        # A client id that would widen the pattern
        ("devices/%c/#", Identity("+"), "devices/other/t", False),
        ("devices/%c/#", Identity("#"), "devices/other/t", False),
        ("%c/#", Identity("a/b"), "a/b/c", False),
        ("%c/#", Identity("$SYS"), "$SYS/x", False),
    ],
)
def test_variables(pattern: str, identity: Identity, topic: str, allowed: bool) -> None:
    some = rules(RuleConfig(topics=(pattern,)))
    assert some.allows(identity, "publish", topic) is allowed


def test_a_denial_that_cannot_be_filled_in_denies_more() -> None:
    some = rules(RuleConfig(effect="deny", topics=("lock/%c/x",)), RuleConfig(topics=("#",)))
    assert not some.allows(Identity("a/b"), "publish", "lock/a/b/x")
    assert some.allows(Identity("a/b"), "publish", "free")


def test_the_gateways_preset() -> None:
    some = rules(preset="gateways")
    gateway = Identity("tidegate-hall-7", name="hall-7")
    reader = Identity("dashboard", user="alice")
    assert some.allows(gateway, "publish", "tidegate/v1/up/hall-7")
    assert not some.allows(gateway, "publish", "tidegate/v1/up/hall-8")
    assert some.allows(gateway, "subscribe", "tidegate/v1/down/hall-7")
    assert some.allows(gateway, "subscribe", "tidegate/v1/down")
    assert some.allows(gateway, "publish", "tidegate/v1/ctl/hall-7")
    assert not some.allows(gateway, "publish", "tidegate/v1/ctl/hall-8")
    assert not some.allows(gateway, "subscribe", "tidegate/v1/down/hall-8")
    assert not some.allows(reader, "publish", "tidegate/v1/up/hall-7")
    assert not some.allows(reader, "publish", "tidegate/v1/ctl/hall-7")
    assert not some.allows(reader, "subscribe", "tidegate/v1/down/hall-7")
    assert not some.allows(reader, "publish", "devices/pump-3/t")
    assert some.allows(reader, "subscribe", "devices/#")
    assert some.allows(Identity("pump-3"), "publish", "devices/pump-3/t")
    assert not some.allows(Identity("pump-3"), "subscribe", "#")


@pytest.mark.parametrize("preset", ["open", "own-devices", "gateways"])
def test_what_goes_down_to_a_gateway_is_for_no_other_client(preset: str) -> None:
    some = rules(RuleConfig(topics=("#",)), preset=preset)
    mine = "tidegate/v1/down/hall-7"
    assert some.allows(Identity("tidegate-hall-7"), "subscribe", mine)
    assert some.allows(Identity("tidegate-hall-7-redrive"), "subscribe", mine)
    assert some.allows(Identity("anything", user="hall-7"), "subscribe", mine)
    assert not some.allows(Identity("pump-3"), "subscribe", mine)
    assert not some.allows(Identity("tidegate-hall-70"), "subscribe", mine)
    assert not some.allows(Identity("hall-7-b"), "subscribe", mine)
    assert some.allows(Identity("pump-3"), "subscribe", "#")  # gets none of it


def test_a_client_id_is_owned_by_user_or_name() -> None:
    assert Identity("hall-7", name="hall-7").owns_client_id()
    assert Identity("tidegate-hall-7", name="hall-7").owns_client_id()
    assert Identity("alice:phone", user="alice").owns_client_id()
    assert not Identity("alice2", user="alice").owns_client_id()
    assert not Identity("bob", user="alice").owns_client_id()
    assert not Identity("anybody").owns_client_id()


# -- covers and overlaps against matching itself ------------------------------------------------

LEVELS = ["a", "b", "", "$x"]
TOPICS = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from([*LEVELS, "+"]), min_size=1, max_size=4))
    if draw(st.booleans()):
        levels[-1] = "#"
    return "/".join(levels) or "/"  # [MQTT-4.7.3-1]


@given(filters(), filters(), TOPICS)
def test_a_topic_of_a_covered_filter_is_matched(pattern: str, other: str, topic: str) -> None:
    if covers(pattern.split("/"), other.split("/")) and matches(other, topic):
        assert matches(pattern, topic)


@given(filters(), filters(), TOPICS)
def test_filters_with_a_topic_in_common_overlap(pattern: str, other: str, topic: str) -> None:
    if matches(pattern, topic) and matches(other, topic):
        assert overlaps(pattern.split("/"), other.split("/"))


@given(filters(), TOPICS)
def test_for_a_topic_both_are_matching(pattern: str, topic: str) -> None:
    levels, name = pattern.split("/"), topic.split("/")
    assert covers(levels, name) == overlaps(levels, name) == matches(pattern, topic)


def test_nothing_covers_a_wildcard_but_its_like() -> None:
    assert covers(["+"], ["+"])
    assert not covers(["a"], ["+"])
    assert not covers(["+"], ["#"])
    assert covers(["a", "#"], ["a", "+", "#"])
