"""Every metric that the documentation names is one that a gateway or a node shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.cluster_nodes import cluster_nodes
from tests.kit.nats import NatsServers, nats_single
from tests.kit.sites import running_gateway

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=8 << 30) as running:
        yield running


def names_in(text: str) -> set[str]:
    """Return the metrics of an exposition, and their samples."""
    found = set[str]()
    for family in text_string_to_metric_families(text):
        found |= {family.name, *(sample.name for sample in family.samples)}
        if family.type == "counter":  # one without a label's value has no sample yet
            found.add(f"{family.name}_total")
    return found


async def test_what_the_documentation_names_is_there(servers: NatsServers, tmp_path: Path) -> None:
    async with (
        cluster_nodes(servers, tmp_path, 1, "alerts") as (node,),
        running_gateway(tmp_path / "gateway", node) as gateway,
        httpx.AsyncClient(timeout=20) as web,
    ):
        shown = (await web.get(f"http://127.0.0.1:{node.http_port}/metrics")).text
        assert gateway.metrics is not None
        there = names_in(shown) | names_in(gateway.metrics.render("")[0].decode())
    there.add("tidegate_thinned")  # a key of a payload (journal-format.md)
    named = {
        (name, page.name)
        for page in DOCS.glob("*.md")
        for name in re.findall(r"\btidegate_[a-z0-9_]+[a-z0-9]\b", page.read_text("utf-8"))
    }
    assert ("tidegate_sink_lag_s", "operations.md") in named
    assert sorted(one for one in named if one[0] not in there) == []
