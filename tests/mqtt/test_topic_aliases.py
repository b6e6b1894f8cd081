"""Aliases that the peer sets and uses, within the maximum it was told."""

from __future__ import annotations

import pytest

from mqtt.errors import ProtocolError
from mqtt.topic_aliases import resolve_alias

CLAUSE = "MQTT-3.3.2-9"


def test_a_topic_beside_an_alias_sets_it_and_may_set_it_anew() -> None:
    topics: dict[int, bytes] = {}
    for topic in (b"a", b"b"):
        assert resolve_alias(topics, 3, topic, 3, CLAUSE) == topic
        assert resolve_alias(topics, 3, b"", 3, CLAUSE) == topic


@pytest.mark.parametrize("topic", ["t", ""])
def test_an_alias_above_the_maximum_is_refused_and_not_set(topic: str) -> None:
    topics = {4: "known"}
    with pytest.raises(ProtocolError, match="the maximum is 3") as caught:
        resolve_alias(topics, 4, topic, 3, CLAUSE)
    assert (caught.value.reason_code, caught.value.clause) == (0x94, CLAUSE)
    assert topics == {4: "known"}


def test_an_alias_that_was_not_set_stands_for_nothing() -> None:
    with pytest.raises(ProtocolError, match="alias 2 was not set") as caught:
        resolve_alias({1: "t"}, 2, "", 3, CLAUSE)
    assert caught.value.reason_code == 0x82
