"""What a search tells while it runs, and how it is told to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine.search.tree import Extension, SearchRecord, Trajectory
from engine.types import Candidate


@dataclass(frozen=True)
class SearchEvent:
    """One thing that has happened in a search.

    `kind` is "step" (sampled, and scored where there is a verifier), "kept" or "pruned" (a step that goes on, or does
    not), "answer" (a completion has ended, with what it states), "spent" (a round is over: what has been drawn so
    far), "done" (the last one).
    """

    kind: str
    address: tuple[int, ...] = ()  # of the step in the tree: the child taken at every level
    text: str = ""  # of a step; of an answer the whole completion
    score: float | None = None  # of the step, by the verifier
    agg_score: float | None = None  # of the path to it
    answer: str | None = None  # what a completion states; with "done" the search's
    generations: int = 0  # with "spent" and "done": drawn so far
    tokens: int = 0  # with "spent" and "done": sampled so far


class Watch:
    """Passed to a search: `tell` hears its events, in the thread that runs it; `is_over` ends it.

    A search that is over draws nothing more, has its last round scored, and returns the vote of what has ended.
    """

    def __init__(self, tell: Callable[[SearchEvent], None] | None = None):
        self._tell = tell
        self.is_over = False

    def steps(self, record: SearchRecord, extensions: Iterable[Extension]) -> None:
        """The nodes that a round has added."""
        if self._tell is None:
            return
        for extension in extensions:
            for index in dict.fromkeys(extension.nodes):
                node = record.tree.nodes[index]
                self._tell(SearchEvent("step", node.address, node.step_text, node.score, node.agg_score))

    def chosen(self, trajectory: Trajectory, *, is_kept: bool) -> None:
        """Whether a step goes on."""
        if self._tell is not None:
            self._tell(SearchEvent("kept" if is_kept else "pruned", trajectory.address))

    def ended(self, candidate: Candidate) -> None:
        """A completion."""
        if self._tell is not None:
            of_path = candidate.agg_score if candidate.scores else None
            self._tell(
                SearchEvent("answer", candidate.address, candidate.text, agg_score=of_path, answer=candidate.answer)
            )

    def spent(self, record: SearchRecord, generations: int) -> None:
        """What the search has drawn until now."""
        if self._tell is not None:
            tokens = sum(node.num_tokens for node in record.tree.nodes)
            self._tell(SearchEvent("spent", generations=generations, tokens=tokens))


UNWATCHED = Watch()
