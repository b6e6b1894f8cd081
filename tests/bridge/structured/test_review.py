"""What an encoder learns from while it goes on."""

from __future__ import annotations

import random

from bridge.structured import StructuredDecoder, StructuredEncoder
from tests.bridge.structured.test_connection import carry
from tests.kit.columns import START, columns_of


def test_sources_that_come_while_columns_are_looked_at_do_no_harm() -> None:
    rng = random.Random(2)
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    for turn in range(40):
        rows = []
        for n in range(12):
            wanted = [key for key in range(40) if rng.random() < 0.9]
            fields = b",".join(b'"k%d":%.1f' % (key, rng.gauss(50, 9)) for key in wanted)
            source = rng.randrange(turn // 4 + 1)  # one more every four batches
            rows.append((START + 1000 * turn + n, f"t/d{source}", b"{" + fields + b"}"))
        carry(encoder, decoder, columns_of(rows))
