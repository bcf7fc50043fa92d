"""What /metrics counts, under vLLM's names with our prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.accounting import Ledger

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Counters of one server; what is read of the engine is asked for when someone looks."""

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]):
        self.registry = CollectorRegistry()
        for name, (text, read) in gauges.items():
            self._make(Gauge, name, text).set_function(read)
        self.prompt_tokens = self._make(Counter, "prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._make(Counter, "generation_tokens", "Tokens that the policy sampled.")
        self.verifier_tokens = self._make(Counter, "verifier_tokens", "Tokens that went through a verifier.")
        self.prefix_cache_queries = self._make(Counter, "prefix_cache_queries", "Given tokens that were looked up.")
        self.prefix_cache_hits = self._make(Counter, "prefix_cache_hits", "Given tokens that were found.")
        self.flops = self._make(Counter, "flops", "FLOPs by what they were for.", ["purpose"])
        self.generations = self._make(Counter, "generations", "Answers that were drawn.", ["strategy"])
        self.success = self._make(Counter, "request_success", "Requests that were answered.", ["finished_reason"])
        self.failure = self._make(Counter, "request_failure", "Requests that were not.", ["reason"])
        self.first_token = self._make(Histogram, "time_to_first_token_seconds", "Of streams.", buckets=_SECONDS)
        self.latency = self._make(Histogram, "e2e_request_latency_seconds", "Of whole requests.", buckets=_SECONDS)

    def _make(self, kind: type, name: str, text: str, labels: Sequence[str] = (), **options: object):
        return kind(f"ttc:{name}", text, labels, registry=self.registry, **options)

    def bill(self, ledger: Ledger) -> None:
        """Counts what a request has cost, whether it was answered or not."""
        tokens = ledger.tokens
        self.verifier_tokens.inc(tokens["verified"])
        self.prefix_cache_queries.inc(tokens["prefilled"] + tokens["cached"])
        self.prefix_cache_hits.inc(tokens["cached"])
        for purpose, flops in ledger.flops.items():
            self.flops.labels(purpose).inc(flops)

    def page(self) -> bytes:
        """All of them as text."""
        return generate_latest(self.registry)
