"""Our engine against transformers on a CPU: `python -m benchmarks.throughput`."""
