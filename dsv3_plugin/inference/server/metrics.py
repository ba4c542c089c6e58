"""What an engine does, in Prometheus' form."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dsv3_plugin.inference.engine import Engine


class EngineCollector(Collector):
    """Reads an engine's counters. They are numbers that its thread alone writes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The state now."""
        engine = self._engine
        counters, scheduler = engine.counters, engine.scheduler
        for name, text, value in (
            ("steps", "Steps that computed something", counters.steps),
            ("computed_tokens", "Tokens that went through the model", counters.computed),
            ("drawn_tokens", "Tokens of answers", counters.drawn),
            ("put_back", "Sequences that lost their latents for want of memory", counters.put_back),
        ):
            yield CounterMetricFamily(f"dsv3_{name}", text, value)
        for name, text, numbers in (
            ("guessed_tokens", "Guesses that were judged, by place", counters.guessed),
            ("accepted_tokens", "Guesses that were right, by place", counters.accepted),
        ):
            family = CounterMetricFamily(f"dsv3_{name}", text, labels=["place"])
            for place, number in enumerate(numbers, start=1):
                family.add_metric([str(place)], number)
            yield family
        for name, text, value in (
            ("running", "Sequences that have pages", scheduler.running),
            ("waiting", "Sequences that have none", scheduler.waiting),
            ("pages", "Pages of the cache", scheduler.pages.count),
            ("pages_held", "Pages that sequences hold", scheduler.held),
            ("pages_known", "Pages of prompts that are known", len(scheduler.prefixes)),
            ("weights_version", "Version of the weights", engine.version),
        ):
            yield GaugeMetricFamily(f"dsv3_{name}", text, value)


def registry_of(engine: Engine) -> CollectorRegistry:
    """A registry of this engine alone."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    return registry
