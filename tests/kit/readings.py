"""Readings for tests: made by hand, by Hypothesis, and compared by what they mean."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from bridge.readings import FLAG_PROPERTIES, Readings

__all__ = ["many_readings", "one_per_row", "readings_of", "rows", "same_readings"]

START_US = 1_700_000_000_000_000


def readings_of(
    payloads: Sequence[bytes],
    *,
    seqs: Sequence[int] | None = None,
    times_us: Sequence[int] | None = None,
    device: str = "d1",
) -> Readings:
    """Return readings of one source with the given payloads, QoS 1."""
    n = len(payloads)
    return Readings(
        seqs if seqs is not None else range(1, n + 1),
        [(f"devices/{device}/value", device)] if n else [],
        [0] * n,
        list(times_us) if times_us is not None else [START_US + 1000 * i for i in range(n)],
        [1] * n,
        list(payloads),
        [b""] * n,
    )


def one_per_row(count: int, *, first_seq: int = 1, devices: int = 7) -> Readings:
    """Return JSON readings of several devices in turn, a second apart."""
    sources = [(f"devices/d{n}/state", f"d{n}") for n in range(devices)]
    return Readings(
        range(first_seq, first_seq + count),
        sources,
        [n % devices for n in range(count)],
        [START_US + (first_seq + n) * 1_000_000 for n in range(count)],
        [1] * count,
        [b'{"n":%d,"v":%d.5}' % (first_seq + n, 20 + n % 5) for n in range(count)],
        [b""] * count,
    )


def rows(readings: Readings) -> list[tuple[object, ...]]:
    """Return one tuple a reading, whatever the order of the source table."""
    properties = readings.properties or [b""] * len(readings)
    return [
        (seq, *readings.sources[index], time_us, flags, payload, block)
        for seq, index, time_us, flags, payload, block in zip(
            readings.seqs,
            readings.source_index,
            readings.times_us,
            readings.flags,
            readings.payloads,
            properties,
            strict=True,
        )
    ]


def same_readings(found: Readings, expected: Readings) -> None:
    """Assert that two sets of readings mean the same."""
    assert rows(found) == rows(expected)


_LEVELS = st.text(st.characters(exclude_characters="\0/+#", exclude_categories=("Cs",)), max_size=6)
_TOPICS = st.lists(_LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
_DEVICES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=8
)


@st.composite
def _sources(draw: st.DrawFn) -> tuple[str, str]:
    topic = draw(_TOPICS)
    levels = [level for level in topic.split("/") if level]
    derived = st.sampled_from(levels) if levels else _DEVICES
    return topic, draw(derived | _DEVICES)


@st.composite
def many_readings(draw: st.DrawFn) -> Readings:
    """Return 1 to 40 readings of anything: topics, devices, times, flags, blocks, gaps in seq."""
    sources = draw(st.lists(_sources(), min_size=1, max_size=5, unique=True))
    n = draw(st.integers(1, 40))
    steps = draw(st.lists(st.integers(1, 1) | st.integers(1, 10**6), min_size=n, max_size=n))
    times = st.integers(-(2**40), 2**52) | st.integers(START_US, START_US + 10**7)
    flagged = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    flags = draw(st.lists(st.sampled_from([0, 1, 2, 4, 5, 6]), min_size=n, max_size=n))
    block = st.sampled_from([b"\x01\x00", b"\x01\x01"]) | st.binary(min_size=1, max_size=20)
    return Readings(
        [sum(steps[: i + 1]) for i in range(n)],
        sources,
        draw(st.lists(st.integers(0, len(sources) - 1), min_size=n, max_size=n)),
        draw(st.lists(times, min_size=n, max_size=n)),
        [value | (FLAG_PROPERTIES if on else 0) for value, on in zip(flags, flagged, strict=True)],
        draw(st.lists(st.binary(max_size=60), min_size=n, max_size=n)),
        [draw(block) if on else b"" for on in flagged],
    )
