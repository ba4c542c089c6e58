"""What an engine does, in Prometheus' form."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dsv3_plugin.inference.server.worker import Worker


class EngineCollector(Collector):
    """Tells an engine's counters, as they were last heard of."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """The state now."""
        state = self._worker.state
        counters = state.counters
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
            ("running", "Sequences that have pages", state.running),
            ("waiting", "Sequences that have none", state.waiting),
            ("pages", "Pages of the cache", state.pages),
            ("pages_held", "Pages that sequences hold, and no known prompt", state.held),
            ("pages_known", "Pages of prompts that are known", state.known),
            ("weights_version", "Version of the weights", state.version),
        ):
            yield GaugeMetricFamily(f"dsv3_{name}", text, value)


def registry_of(worker: Worker) -> CollectorRegistry:
    """A registry of this engine alone."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(worker))
    return registry
