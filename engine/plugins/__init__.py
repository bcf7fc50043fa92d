"""Plugins of evaluation frameworks: lm-evaluation-harness and Inspect. Each imports its framework, and only its own."""
