"""One budget for a batch of problems: it goes where most is gained, and what one problem saves others get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.errors import UserError
from engine.scheduler.allocation import Curve, allocate
from engine.scheduler.calibration import Calibration
from engine.scheduler.compute_optimal import ComputeOptimal
from engine.scheduler.planner import Assigned, Assignment, PilotSamples, Planner
from engine.search.answers import Grade
from engine.search.registry import can_spend, strategy_label
from engine.types import Problem, SearchResult

# Searches problems by a planner, within a budget for each; results in order.
Search = Callable[[Sequence[Problem], Planner, int], list[SearchResult]]


@dataclass
class _Share:
    """One problem of the batch: its difficulty, what it has spent, and whether it may get more."""

    ease: float
    bin: int
    curve: Curve
    result: SearchResult | None  # of what has been spent so far
    strategies: tuple[str, ...] = ()  # in the order in which they ran
    is_open: bool = True

    @property
    def num_spent(self) -> int:
        return 0 if self.result is None else self.result.num_generations


def search_batch(
    search: Search,
    problems: Sequence[Problem],
    strategy: ComputeOptimal,
    total: int,
    *,
    grade: Grade | None = None,
) -> list[SearchResult]:
    """Searches a batch of problems with `total` generations for all of them together.

    First every problem's difficulty is predicted. Then rounds: the generations left are divided by expected gain, and
    each problem goes on from what it has. A problem that did not spend what it was given (its vote was decided, or the
    verifier was sure) is closed, and what it saved is divided among the others in the next round, those included whose
    part was too small to spend before. Rounds end where nothing is left, or nothing is to be gained. As a round waits
    for all its searches, results do not depend on which of them ends first.

    A result's `budget` is what its problem was given, of which `num_generations` were spent. Samples of a
    predictor that does not re-use them are in the bill and not in the budget.
    Raises UserError for a total under one pilot (or the fewest generations that a measured strategy
    can spend) per problem, or an id named twice.
    """
    calibration = strategy.calibration
    if len({problem.id for problem in problems}) < len(problems):
        raise UserError(f"problems of a batch need ids of their own, got {_twice(problems)!r} twice")
    least = _least(calibration)
    if total < least * len(problems):
        raise UserError(
            f"the total budget must be at least {least} for each of {len(problems)} problems, "
            f"{least * len(problems)} in all, got {total}"
        )
    shares, samples = _predict(search, problems, calibration, grade)
    while assignments := _assign(problems, shares, calibration, total, least):
        chosen = [index for index, problem in enumerate(problems) if problem.id in assignments]
        most = max(given.budget for given in assignments.values())
        running = {
            name: replace(given, strategy=calibration.stopping(given.strategy)) for name, given in assignments.items()
        }
        results = search([problems[index] for index in chosen], Assigned(running), most)
        for index, result in zip(chosen, results, strict=True):
            share, given = shares[index], assignments[problems[index].id]
            assert share.num_spent <= result.num_generations <= given.budget, "budget overshot"
            share.is_open = given.budget - result.num_generations <= given.strategy.lookahead  # of what it cannot spend
            share.result = result
            share.strategies += (strategy_label(given.strategy),)
    assert sum(share.num_spent for share in shares) <= total, "total budget overshot"
    return [_finish(share, strategy.name, calibration, bill) for share, bill in zip(shares, samples, strict=True)]


def _least(calibration: Calibration) -> int:
    """The least budget of a problem: its pilot, or else the fewest generations that suffice in every bin."""
    if calibration.predictor.num_spent:
        return calibration.predictor.num_samples

    def can_start(bin_index: int, budget: int) -> bool:
        return any(can_spend(cell.strategy, budget) for cell in calibration.cells if cell.bin == bin_index)

    bins = range(calibration.bins.count)
    for budget in range(1, max(calibration.budgets) + 1):
        if all(can_start(index, budget) for index in bins):
            return budget
    raise UserError(f"no budget up to {max(calibration.budgets)} suits a measured strategy of every bin")


def _predict(
    search: Search, problems: Sequence[Problem], calibration: Calibration, grade: Grade | None
) -> tuple[list[_Share], list[SearchResult]]:
    """Every problem's share before anything is divided, and the samples that its difficulty was predicted from."""
    predictor, bins = calibration.predictor, calibration.bins
    samples = search(problems, PilotSamples(predictor, calibration.is_scored), max(1, predictor.num_samples))
    shares = []
    for each in samples:
        ease = predictor.value(each, grade)
        index = bins.index(ease)
        start = each if predictor.is_reused else None
        shares.append(_Share(ease, index, calibration.curve(index), start))
    return shares, samples


def _assign(
    problems: Sequence[Problem], shares: Sequence[_Share], calibration: Calibration, total: int, least: int
) -> dict[str, Assignment]:
    """The assignments of the problems that go on, or that have a pilot and have not voted yet."""
    going_on = [share.is_open for share in shares]
    assignments: dict[str, Assignment] = {}
    while not assignments:
        # What takes no more keeps what it has spent: its curve ends there.
        curves = [
            share.curve if is_open else ((share.num_spent, 0.0),)
            for share, is_open in zip(shares, going_on, strict=True)
        ]
        floors = [share.num_spent if share.strategies else max(least, share.num_spent) for share in shares]
        budgets = allocate(curves, total, floors)
        is_last = True
        for index, (share, budget) in enumerate(zip(shares, budgets, strict=True)):
            if budget == share.num_spent and share.strategies:
                continue
            if given := _spendable(share, calibration, budget):
                assignments[problems[index].id] = given
            elif going_on[index]:
                going_on[index] = is_last = False  # no strategy can spend so little, in this round: others may
        if is_last:
            break
    return assignments


def _spendable(share: _Share, calibration: Calibration, budget: int) -> Assignment | None:
    """A share's assignment of a budget, or of the largest one below it that a strategy can spend."""
    least = share.num_spent + (1 if share.strategies else 0)  # a pilot may vote as it is
    for each in range(budget, least - 1, -1):
        if any(can_spend(cell.strategy, each - share.num_spent) for cell in calibration.cells if cell.bin == share.bin):
            return Assignment(calibration.choose(share.bin, each, share.num_spent).strategy, each, share.result)
    return None


def _finish(share: _Share, name: str, calibration: Calibration, samples: SearchResult) -> SearchResult:
    """The result as the batch returns it: with its plan, and with the bill of samples that were not re-used."""
    assert share.result is not None, "every problem is given at least one generation"
    if not calibration.predictor.is_reused:
        share.result.ledger.include(samples.ledger)
    ran = ", then ".join(share.strategies) or "the pilot alone"
    plan = f"ease {share.ease:.3g}, {calibration.bins.describe(share.bin)}: {ran}, {share.num_spent} generations"
    return replace(share.result, strategy=name, plan=plan)


def _twice(problems: Sequence[Problem]) -> str:
    seen: set[str] = set()
    return next(problem.id for problem in problems if problem.id in seen or seen.add(problem.id))
