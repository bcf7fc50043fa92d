"""The decode table: one slot per branch being sampled, its state in arrays."""

from __future__ import annotations

import numpy as np

from engine.runtime.requests import SampleJob
from engine.runtime.tips import Tip

_COLUMNS = {
    "is_decoding": np.bool_,  # has a handle of its own and a pending token to feed
    "is_starting": np.bool_,  # waits for the logits of its source tip
    "handle": np.int32,
    "pending": np.int32,  # last sampled token, not yet fed
    "key": np.int64,
    "position": np.int32,  # of the token to be sampled next
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "count": np.int32,  # tokens sampled in this extension
    "max_count": np.int32,
    "rule": np.int32,  # stop rule
    "billed": np.int32,  # tokens of this extension whose feeding is on the bill
}


class Rows:
    """Columns are arrays of length `max_rows`; `tokens` is (max_rows, capacity)."""

    def __init__(self, max_rows: int):
        self.max_rows = max_rows
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(max_rows, dtype))
        self.tokens = np.zeros((max_rows, 64), np.int32)
        self.logprobs = np.zeros((max_rows, 64), np.float32)
        self.jobs: list[SampleJob | None] = [None] * max_rows
        self.tips: list[Tip | None] = [None] * max_rows  # the tip that each decoding row is making
        self._free = list(range(max_rows))[::-1]

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.max_rows - len(self._free)

    def add(self, job: SampleJob) -> int:
        """Takes a slot for a job, which then waits for its source's logits."""
        row = self._free.pop()
        sampling, done = job.request.sampling, job.partial.tokens if job.partial else []
        self.jobs[row] = job
        self.is_starting[row], self.is_decoding[row] = True, False
        self.key[row] = job.key
        self.position[row] = job.source.end
        self.temperature[row], self.top_k[row] = sampling.temperature, sampling.top_k
        self.top_p[row], self.min_p[row] = sampling.top_p, sampling.min_p
        self.count[row], self.max_count[row] = len(done), job.max_tokens
        self.rule[row] = job.request.stop_rule
        self.billed[row] = len(done)
        self._reserve(len(done) + 1)
        self.tokens[row, : len(done)] = done
        self.logprobs[row, : len(done)] = job.logprobs
        return row

    def remove(self, row: int) -> None:
        """Gives a slot back."""
        self.is_starting[row] = self.is_decoding[row] = False
        self.jobs[row] = self.tips[row] = None
        self._free.append(row)

    def push(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Appends one sampled token to each of the rows."""
        counts = self.count[rows]
        self._reserve(int(counts.max(initial=0)) + 1)
        self.tokens[rows, counts] = tokens
        self.logprobs[rows, counts] = logprobs
        self.pending[rows] = tokens
        self.count[rows] = counts + 1
        self.position[rows] += 1

    def sampled(self, row: int) -> list[int]:
        """Tokens of the extension so far."""
        return self.tokens[row, : self.count[row]].tolist()

    def _reserve(self, capacity: int) -> None:
        while self.tokens.shape[1] < capacity:
            self.tokens = np.concatenate([self.tokens, np.zeros_like(self.tokens)], axis=1)
            self.logprobs = np.concatenate([self.logprobs, np.zeros_like(self.logprobs)], axis=1)
