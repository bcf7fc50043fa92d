"""Labels the steps of finished searches: of what they kept, and of what they rejected (`ttc rollouts --from`).

A verifier that was trained on samples alone has never seen what a search against it keeps. Its next round is trained on
that (DAgger, Ross et al. 2011).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.accounting import Ledger
from engine.errors import UserError
from engine.prompts.text import check_encodable
from engine.runtime.requests import GeneratedTokens
from engine.training.labellers import close, label_by_own_end, roll_out
from engine.training.sampler import SampledAnswer, Sampler
from engine.types import FINISHED, Problem


@dataclass(frozen=True)
class SearchedPath:
    """A path from the root of a search tree to one of its leaves."""

    steps: tuple[tuple[int, ...], ...]  # the token ids of each node
    text: str
    score: float  # the aggregate of its steps' scores, of which an end of text alone has none; -inf for none at all
    is_ended: bool  # else the leaf is a step that the search rejected, or had no budget to go on from

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for step in self.steps for token in step)

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        """The token ids up to every node but the last."""
        ids = self.token_ids
        ends = [sum(map(len, self.steps[:count])) for count in range(1, len(self.steps))]
        return [ids[:end] for end in ends]


@dataclass(frozen=True)
class SearchedQuestion(Problem):
    """A question with the paths of all its searches that are labelled."""

    paths: tuple[SearchedPath, ...] = ()


def searched_questions(
    rows: Iterable[tuple[str, Mapping]],  # where it stands, and a checked result row
    num_questions: int,
    max_paths: int,
    seed: int,
    *,
    only_ended: bool = False,
) -> list[SearchedQuestion]:
    """The first questions of result rows with trees, in order; rows of one question are taken together.

    Raises UserError for a row without a gold answer or without a tree of steps.
    """
    found: dict[str, tuple[Problem, list[SearchedPath]]] = {}
    for origin, row in rows:
        if not row["answer"]:
            raise UserError(f"{origin}: rollouts are labelled by the gold answer, got {row['answer']!r}")
        if row["problem"] not in found and len(found) == num_questions:
            continue
        try:
            problem = Problem(check_encodable(row["id"]), row["problem"], row["answer"])
            found.setdefault(problem.prompt, (problem, []))[1].extend(tree_paths(row))
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
    return [
        SearchedQuestion(each.id, each.prompt, each.answer, paths=chosen)
        for each, paths in found.values()
        for chosen in [choose_paths(paths, max_paths, random.Random(f"{seed}/{each.id}"), only_ended=only_ended)]
    ]


def tree_paths(row: Mapping) -> list[SearchedPath]:
    """The paths to all leaves of a row's tree, without those that were cut off or met an error.

    Raises UserError for a row without a tree and its token ids, and for a tree of revisions.
    """
    nodes, ids = row.get("tree"), row.get("tree_token_ids")
    if nodes is None or ids is None:
        raise UserError("the row has no search tree with token ids (ttc search --with-tree puts it there)")
    if not isinstance(ids, list) or len(nodes) != len(ids) or not all(map(_are_ids, ids)):
        raise UserError(
            f"'tree_token_ids' needs a list of token ids for each of the {len(nodes)} nodes, got {str(ids)[:60]}"
        )
    parents = {node["parent"] for node in nodes}
    if any(nodes[index].get("finish") != "step" for index in parents if index):
        raise UserError(f"answers of {row['strategy']} go on after whole answers: they are no steps to roll out from")
    return [
        _path(nodes, ids, index)
        for index, node in enumerate(nodes)
        if index not in parents and node.get("finish") in ("step", *FINISHED)
    ]


def _are_ids(run: object) -> bool:
    return isinstance(run, list) and all(type(token) is int for token in run)


def _path(nodes: Sequence[Mapping], ids: Sequence[list[int]], leaf: int) -> SearchedPath:
    places = [leaf]
    while parent := nodes[places[-1]]["parent"]:
        places.append(parent)
    places.reverse()
    text = "".join(nodes[place].get("text", "") for place in places)
    scores = [score for place in places if (score := nodes[place].get("agg_score")) is not None]
    steps = tuple(tuple(ids[place]) for place in places)
    return SearchedPath(steps, text, scores[-1] if scores else -math.inf, nodes[leaf]["finish"] in FINISHED)


def choose_paths(
    paths: Sequence[SearchedPath], max_paths: int, rng: random.Random, *, only_ended: bool = False
) -> tuple[SearchedPath, ...]:
    """At most so many different ones: the best-scored finished ones and, drawn at random, as many rejected ones.

    Where there are fewer of one kind there are more of the other. A rejected one that begins another path is left out.
    """
    best: dict[tuple[int, ...], SearchedPath] = {}
    for path in sorted(paths, key=lambda path: -path.score):
        best.setdefault(path.token_ids, path)
    inner = {prefix for path in best.values() for prefix in path.prefixes}
    ended = [path for path in best.values() if path.is_ended]
    rejected = [path for ids, path in best.items() if not (path.is_ended or only_ended or ids in inner)]
    num_rejected = min(len(rejected), max(max_paths // 2, max_paths - len(ended)))
    return (*ended[: max_paths - num_rejected], *rng.sample(rejected, num_rejected))


async def label_paths(sampler: Sampler, paths: Sequence[SearchedPath], num_rollouts: int) -> list[SampledAnswer]:
    """The paths with a label per step: the share of rollouts from there that end right, or how the answer itself ends.

    Equal prefixes are rolled out once. Without rollouts all steps have the label of the end. A path over the task's
    limit of tokens is left out.
    """
    answers = [_as_answer(sampler, path) for path in paths]
    answers = [answer for answer in answers if sampler.room(answer.steps) >= (0 if answer.is_ended else 1)]
    if not num_rollouts:
        label_by_own_end(sampler, answers)
        return answers
    places: dict[tuple[int, ...], SampledAnswer] = {}
    try:
        await _open(sampler, answers, places)
        todo = [(place, place.branch, place.steps) for place in places.values()]
        for place, share in zip(places.values(), await roll_out(sampler, todo, num_rollouts), strict=True):
            place.labels = [share]
    finally:
        close(list(places.values()))
    for answer, is_right in zip(answers, sampler.are_right([each.steps for each in answers]), strict=True):
        shares = [places[prefix].labels[0] for prefix in _prefixes(answer)]
        answer.labels = [*shares, float(is_right)] if answer.is_ended else shares
    for place in places.values():  # each is paid for by one of the answers that share it
        next(each for each in answers if place.address in _prefixes(each)).num_rollouts += place.num_rollouts
    return answers


def _as_answer(sampler: Sampler, path: SearchedPath) -> SampledAnswer:
    """The path in the policy's own steps: a node may hold several. Raises UserError for another policy's tokens."""
    ids = path.token_ids
    sampler.policy.llm.vocabulary.check(ids)
    generated = GeneratedTokens(ids, (0.0,) * len(ids), "eos" if path.is_ended else "step", {})
    steps = sampler.policy.split(generated)
    if (text := "".join(step.text for step in steps)) != path.text:
        raise UserError(
            f"the tokens of a search for {sampler.problem.id!r} are {text[:40]!r} to this policy, "
            f"and were {path.text[:40]!r}: it was searched with another one"
        )
    return SampledAnswer((), None, steps)


def _prefixes(answer: SampledAnswer) -> list[tuple[int, ...]]:
    """The token ids up to every step that can be rolled out."""
    steps = answer.steps[:-1] if answer.is_ended else answer.steps
    prefixes, ids = [], ()
    for step in steps:
        ids += step.token_ids
        prefixes.append(ids)
    return prefixes


async def _open(
    sampler: Sampler, answers: Sequence[SampledAnswer], places: dict[tuple[int, ...], SampledAnswer]
) -> None:
    """Adds to `places` each distinct prefix of the answers, with a branch that holds it."""
    root = await sampler.policy.open(sampler.problem.prompt, ledger=Ledger())
    places[()] = SampledAnswer((), root)
    try:
        for answer in answers:
            before: tuple[int, ...] = ()
            for count, prefix in enumerate(_prefixes(answer), start=1):
                if prefix not in places:
                    (branch,) = places[before].branch.fork(1)
                    places[prefix] = SampledAnswer(prefix, branch, answer.steps[:count])
                    sampler.policy.llm.append([branch], [answer.steps[count - 1].token_ids], is_lazy=True)
                before = prefix
    finally:
        close([places.pop(())])
