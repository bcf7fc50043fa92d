"""Files of rows as one heap, or as a mix from which updates are drawn by weight; and which questions are held out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from engine.counts import are_weights
from engine.errors import UserError
from engine.training.arguments import UpdatesRecipe
from engine.training.batches import DrawnBatches

Rollouts = Sequence[Path] | Mapping[Path, float]  # one heap; or a mix: each file with its weight


@dataclass(frozen=True)
class Heap:
    """Rows that are packed together."""

    name: str  # of its file
    weight: float  # how often an update takes its batch from here
    train: list
    held: list  # the rows of held-out questions

    def map(self, function: Callable[[list], list]) -> Heap:
        """The heap with what `function` makes of each part's rows."""
        return Heap(self.name, self.weight, function(self.train), function(self.held))


def read_heaps(
    rollouts: Rollouts,
    read: Callable[[Sequence[Path]], Iterable],  # the rows of some files
    recipe: UpdatesRecipe,
    question_of: Callable = itemgetter("prompt"),
) -> list[Heap]:
    """One heap, or one per file where they have weights.

    Raises UserError for a weight that is not over 0, weights without a finite sum, and where nothing is left to train
    on.
    """
    parts = [((path,), weight) for path, weight in rollouts.items()] if is_mix(rollouts) else [(rollouts, 1.0)]
    for paths, weight in parts:
        if not 0 < weight < math.inf:
            raise UserError(f"the weight of {paths[0]} must be a number over 0, got {weight}")
    if not are_weights([weight for _, weight in parts]):
        raise UserError(f"the weights of a mix need a finite sum, got {', '.join(str(weight) for _, weight in parts)}")
    rows = [list(read(paths)) for paths, _ in parts]
    kept = held_out_questions({question_of(row) for part in rows for row in part}, recipe.held_out, recipe.seed)
    heaps = []
    for (paths, weight), part in zip(parts, rows, strict=True):
        train, held = ([row for row in part if (question_of(row) in kept) is side] for side in (False, True))
        heaps.append(Heap(", ".join(map(str, paths)), weight, train, held))
        if not train:
            one = f", {question_of(part[0])!r} is" if part else ""
            raise UserError(f"all questions of {heaps[-1].name} are held out{one}: nothing is left to train on")
    return heaps


def is_mix(rollouts: Rollouts) -> bool:
    """Whether the files have weights."""
    return isinstance(rollouts, Mapping)


def held_out_questions(questions: set[str], share: float, seed: int) -> set[str]:
    """Those that are evaluated on: about `share` of them, at least one, and not all unless there is just one.

    But for this, whether a question is among them depends on (seed, question) alone: what one training held out, the
    next one, which goes on from it with other files, does not train on.
    """
    places = {question: random.Random(f"held-out/{seed}/{question}").random() for question in questions}
    if not places:
        return set()
    least, most = (choose(places, key=places.get) for choose in (min, max))
    return {question for question, place in places.items() if place < share} - {most} | {least}


def mix_figures(
    heaps: Sequence[Heap],
    batches: DrawnBatches,
    held: Sequence[Sequence],  # of each heap
    figures_of: Callable[[Sequence], dict],
) -> dict:
    """Figures of all held-out rows together and the number of epochs; in a mix these are by file, as are figures."""
    epochs = batches.num_epochs()
    joined = figures_of([row for rows in held for row in rows])
    if len(heaps) == 1:
        return {**joined, "epochs": epochs[0]}
    each = [{**(figures_of(rows) if rows else {}), "epochs": number} for number, rows in zip(epochs, held, strict=True)]
    return {**joined, "by_file": {heap.name: found for heap, found in zip(heaps, each, strict=True)}}
