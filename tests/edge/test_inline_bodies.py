"""What a small batch takes to encode is told beforehand, in fields to be learned."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf

import pytest

from bridge.columnar import Columns
from bridge.envelope import Mode
from bridge.structured.learner import choose_spec
from edge.inline_bodies import InlineBodies
from edge.uplink_bodies import UplinkBodies
from tests.kit.columns import START, columns_of, in_batches
from tests.kit.foreign_payloads import FOREIGN
from tests.kit.payload_shapes import messages

_FIELD_S = 0.00015  # so that a batch of up to 20 fields to learn is fit for the loop


def batch_of(payloads: Sequence[bytes]) -> Columns:
    return columns_of([(START + n, f"t/d{n}", payload) for n, payload in enumerate(payloads)])


def bodies_of() -> InlineBodies:
    return InlineBodies(1000, 3, _FIELD_S)


@pytest.mark.parametrize(
    ("payloads", "fields"),
    [
        ([b"21.5"], 1 + 1),
        ([b""], 0 + 1),
        ([b'{"a":1,"b":[2,3],"c":"x"}'], 4 + 1),
        ([b'{"a":1}', b'{"a":2}', b'{"b":2}'], 2 + 3),
        ([b"[" + b"1," * 200 + b"1]"], 201 + 1),
        ([b"21.5", bytes(range(40))], inf),
    ],
)
def test_the_work_of_a_batch_is_what_it_has_to_learn(payloads: list[bytes], fields: float) -> None:
    size = sum(map(len, payloads))
    assert bodies_of().work(batch_of(payloads)) == fields + (size / 256 if fields < inf else 0)


def test_a_shape_is_learned_once_a_context_and_only_by_what_was_encoded() -> None:
    bodies = bodies_of()
    batch = batch_of([b'{"a":1,"b":2,"c":3}'])
    assert bodies.work(batch) == bodies.work(batch) > 4
    mode, _ = bodies.encode(batch, 0)
    assert mode == Mode.STRUCTURED
    assert bodies.work(batch) < 2
    bodies.reset()
    assert bodies.work(batch) > 4


@pytest.mark.parametrize("kind", FOREIGN)
def test_whatever_the_software_no_batch_learns_many_fields_on_the_loop(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[int] = []

    def counted(*args: object, **known: object) -> object:
        learned[-1] += 1
        return choose_spec(*args, **known)  # type: ignore[arg-type]

    monkeypatch.setattr("bridge.structured.planner.choose_spec", counted)
    bodies = bodies_of()
    for batch in in_batches(messages(kind, 40), 1):
        if bodies.fits(batch):
            learned.append(0)
            bodies.encode(batch, 0)
    assert max(learned, default=0) <= 20


async def test_batches_of_many_fields_never_reach_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(request: bytes) -> bytes:
        return bytes((Mode.COLUMNAR,)) if request else b""

    monkeypatch.setattr("edge.inline_bodies._measured", lambda _: _FIELD_S)
    bodies = UplinkBodies("structured", 1000, 3)
    monkeypatch.setattr(bodies._worker, "call", call)
    few, many = batch_of([b'{"a":1,"b":2}']), batch_of([b"[" + b"1," * 200 + b"1]"])
    by_process = []
    for batch in (few, many, few):
        made = await bodies.encode(batch, 0)
        assert made is not None
        by_process.append(made[0] == Mode.COLUMNAR)
    assert by_process == [False, True, False]
    await bodies.close()


async def test_batches_go_in_mode_0_while_the_codec_is_imported() -> None:
    bodies = UplinkBodies("auto", 1000, 3)
    batch = batch_of([b"1"])
    assert await bodies.encode(batch, 0) is None
    loading = bodies._loading
    assert loading is not None
    await asyncio.wait_for(loading, 30)
    made = await bodies.encode(batch, 0)
    assert made is not None
    assert made[0] == Mode.STRUCTURED
    await bodies.close()


def test_what_a_field_takes_is_measured_on_this_machine() -> None:
    assert 0 < InlineBodies(1000, 3)._field_s < 1
