"""Which endpoint is dialled next, and when, told dial by dial."""

from __future__ import annotations

from bridge.backoff import DecorrelatedJitter
from bridge.endpoint_rotation import EndpointRotation


class Middle:
    """A generator that always draws the middle."""

    def uniform(self, a: float, b: float, /) -> float:
        return (a + b) / 2


def rotation(count: int) -> EndpointRotation:
    return EndpointRotation(count, DecorrelatedJitter(0.5, 60.0, Middle()), Middle())


def test_endpoints_are_tried_in_order_and_pauses_lie_between_rounds() -> None:
    endpoints = rotation(3)
    dials = []
    now_s = 0.0
    for _ in range(9):
        now_s = max(now_s, endpoints.dial_at_s)
        dials.append((endpoints.index, now_s))
        endpoints.failed(now_s)
    assert [index for index, _ in dials] == [0, 1, 2] * 3
    rounds = [dials[place][1] for place in (0, 3, 6)]
    assert [when for _, when in dials] == sorted(rounds * 3)
    assert rounds[0] < rounds[1] < rounds[2]
    assert rounds[2] - rounds[1] > rounds[1] - rounds[0]


def test_an_endpoint_that_says_when_is_dialled_then_at_random_and_others_meanwhile() -> None:
    endpoints = rotation(2)
    endpoints.failed(0.0, retry_after_s=40.0)
    assert (endpoints.index, endpoints.dial_at_s) == (1, 0.0)
    endpoints.failed(0.0)
    assert endpoints.index == 1, "the first is not asked before its time"
    assert 0 < endpoints.dial_at_s < 40
    endpoints.failed(30.0, retry_after_s=40.0)
    assert (endpoints.index, endpoints.dial_at_s) == (0, 45.0), "the one that is due first"
    endpoints.failed(45.0)
    assert (endpoints.index, 45.0 < endpoints.dial_at_s < 50.0) == (0, True)


def test_a_time_that_makes_no_sense_is_not_waited_for() -> None:
    endpoints = rotation(1)
    endpoints.failed(0.0, retry_after_s=1e9)
    assert endpoints.dial_at_s == 3600 * 1.125


def test_after_a_connection_that_worked_the_first_is_tried_first_and_not_at_once() -> None:
    endpoints = rotation(2)
    endpoints.failed(0.0)
    assert endpoints.index == 1
    endpoints.worked(40.0)
    assert (endpoints.index, endpoints.dial_at_s) == (0, 41.0)


def test_other_endpoints_are_not_kept_waiting_for_what_those_before_have_said() -> None:
    endpoints = rotation(2)
    endpoints.failed(0.0, retry_after_s=40.0)
    endpoints.replace(2)
    assert endpoints.index == 0
    endpoints.failed(1.0)
    endpoints.failed(1.0)
    assert endpoints.index == 0, "a new first endpoint has said nothing"
    assert endpoints.dial_at_s < 5.0
