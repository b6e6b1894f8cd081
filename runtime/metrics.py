"""Metrics for Prometheus: figures that services keep anyway, read when somebody asks.

    metrics = Metrics()
    metrics.wrap("tidegate_journal", stats, counters={"commits": "Group commits."})
    metrics.gauge("tidegate_uplink_lag_readings", "Readings not acknowledged yet.", lag)
    body, content_type = metrics.render()

Nothing on a hot path is counted here: `read` functions take what a service's own statistics hold
at the moment of a scrape. Each `Metrics` has its own registry, so that several services live in
one process. Names are `tidegate_<part>_<what>_<unit>`; counters get `_total` in the exposition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["Metrics", "Read", "Value"]

# one figure, or a figure for each tuple of label values
Value = float | Mapping[tuple[str, ...], float]
Read = Callable[[], Value]

_NAME = re.compile(r"tidegate(_[a-z][a-z0-9]*){2,}")


@dataclass(slots=True, frozen=True)
class _Figure:
    """One metric and where its value comes from."""

    name: str
    help: str
    family: type[CounterMetricFamily | GaugeMetricFamily]
    labels: tuple[str, ...]
    read: Read


class Metrics:
    """The metrics of one service.

    Attributes:
        registry: The registry behind `render`, for collectors of other libraries.
        read_errors: Times a `read` function raised; its metric was left out of that scrape.
    """

    def __init__(self, *, process: bool = True) -> None:
        """Begin without any metrics, or with those of the process (CPU, memory, open files)."""
        self.registry = CollectorRegistry()
        self.read_errors = 0
        self._figures: dict[str, _Figure] = {}
        if process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
        self.registry.register(_Collector(self._collect))
        self.counter(
            "tidegate_metrics_read_errors",
            "Metrics left out of a scrape because their figures could not be read.",
            lambda: self.read_errors,
        )

    def counter(self, name: str, help: str, read: Read, labels: Sequence[str] = ()) -> None:  # noqa: A002
        """Add a figure that only rises while the process lives.

        Args:
            name: `tidegate_<part>_<what>_<unit>`, without `_total`.
            help: One sentence for the exposition.
            read: Returns the figure, or with `labels` one a tuple of label values.
            labels: Names of the labels, in the order of the tuples.
        """
        self._add(_Figure(name, help, CounterMetricFamily, tuple(labels), read))

    def gauge(self, name: str, help: str, read: Read, labels: Sequence[str] = ()) -> None:  # noqa: A002
        """Add a figure that rises and falls; arguments as for `counter`."""
        self._add(_Figure(name, help, GaugeMetricFamily, tuple(labels), read))

    def wrap(
        self,
        prefix: str,
        stats: object,
        *,
        counters: Mapping[str, str] | None = None,
        gauges: Mapping[str, str] | None = None,
    ) -> None:
        """Show attributes of an object that a service keeps its statistics in.

        Args:
            prefix: `tidegate_<part>`; the attribute's name follows it.
            stats: The object; its attributes are read at each scrape.
            counters: Help by attribute, for those that only rise.
            gauges: Help by attribute, for the others.

        Raises:
            AttributeError: `stats` lacks one of them.
        """
        for add, attributes in ((self.counter, counters), (self.gauge, gauges)):
            for attribute, text in (attributes or {}).items():
                getattr(stats, attribute)
                add(f"{prefix}_{attribute}", text, _attribute(stats, attribute))

    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002
        buckets: Sequence[float],
        labels: Sequence[str] = (),
    ) -> Histogram:
        """Make a histogram that the service observes itself, at batch rate, not per reading."""
        self._check(name)
        return Histogram(name, help, tuple(labels), buckets=buckets, registry=self.registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _add(self, figure: _Figure) -> None:
        self._check(figure.name)
        self._figures[figure.name] = figure

    def _check(self, name: str) -> None:
        if not _NAME.fullmatch(name) or name.endswith("_total"):
            raise ValueError(f"metric '{name}' is not named tidegate_<part>_<what>_<unit>")
        if name in self._figures:
            raise ValueError(f"metric '{name}' exists already")

    def _collect(self) -> Iterator[Metric]:
        # the errors of this scrape show in it: the one that counts them goes last
        first, *rest = self._figures.values()
        for figure in (*rest, first):
            family = figure.family(figure.name, figure.help, labels=figure.labels)
            try:
                value = figure.read()
                rows = value.items() if isinstance(value, Mapping) else [((), value)]
                for labels, number in rows:
                    family.add_metric(labels, float(number))
            except Exception:  # noqa: BLE001 - one part's fault must not hide the other parts
                self.read_errors += 1
                continue
            yield family


class _Collector:
    """What prometheus-client asks at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: figures are added after this is registered."""
        return ()


def _attribute(stats: object, name: str) -> Read:
    def read() -> Value:
        value: Value = getattr(stats, name)
        return value

    return read
