"""All that has been measured so far, read from the run journals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.paper.bills import Bills
from benchmarks.paper.cells import BASELINE, EXACT_BEAM, REVISIONS, SEARCHES, SHIPPED, Cell
from benchmarks.paper.chains import Attempts, by_majority, ratio_label
from benchmarks.paper.difficulty import Binning, binnings, pilot_binning
from benchmarks.paper.measured import Measured, cell_measured, pool_series
from benchmarks.paper.models import num_params
from benchmarks.paper.optimal import Optimal, charged, compute_optimal, one_after_another, seed_means
from benchmarks.paper.pools import Pool
from benchmarks.paper.settings import BINS_STREAM, PILOT
from benchmarks.paper.stages import Study
from engine.accounting import Ledger
from engine.errors import UserError
from engine.results import read_journal
from engine.results.rows import Row

Tables = dict[str, dict[int, Measured]]
CHOICES = ("majority", "best-of-n", *SEARCHES)  # what compute-optimal chooses from
PILOTS = {"agreement pilot": "agreement", "score pilot": "score"}  # kind: predictor
_PILOTED = ("majority", "best-of-n", "pilot, then beam M=4", "pilot, then rebase")


@dataclass(frozen=True)
class Large:
    """The larger policy's one greedy answer to every problem."""

    right: np.ndarray  # (num_problems,)
    flops: np.ndarray
    params: int  # that multiply a token
    small_params: int

    @property
    def size_ratio(self) -> float:
        return self.params / self.small_params


@dataclass(frozen=True)
class Evidence:
    """Figures per problem, and what is missing."""

    study: Study
    seeds: tuple[int, ...]  # whose pools are whole
    tables: Tables
    binnings: dict[str, Binning]
    optimal: dict[str, dict[int, Optimal]]  # by kind of bins, then budget
    ratios: dict[int, dict[int, tuple[Measured, Measured]]]  # budget, chains: (vote of the run, majority)
    attempts: Attempts | None  # of the revision model
    baseline: Attempts | None  # of the policy shown its own attempts
    large: Large | None
    samples: tuple[tuple[str, ...], ...]  # per problem, the texts of the first seed's pool
    seconds: dict[str, float]
    missing: tuple[dict[str, str], ...]

    @property
    def num_problems(self) -> int:
        return len(self.study.problems)


def gather(study: Study) -> Evidence:
    """Raises UserError where a pool that everything needs is not whole yet."""
    reader = _Reader(study)
    bin_pools = reader.pools(study.settings.seeds[0], BINS_STREAM)
    found = {seed: reader.pools(seed) for seed in study.settings.seeds}
    pools = {seed: each for seed, each in found.items() if each}
    if not pools or not bin_pools:
        reasons = [f"{each['what']}: {each['reason']}" for each in reader.missing if each["what"].startswith("pool")]
        raise UserError(f"tables need the pools in {study.settings.work}; {reasons[0]}")
    is_judged = all(pool.judged is not None for seed in pools.values() for pool in seed)
    bills = {
        kind: [Bills.of(study.models.engine, problem, kind) for problem in study.problems]
        for kind in (None, "prm", *(["orm"] if is_judged else []))
    }
    tables = pool_series(list(pools.values()), bills, study.settings.budgets)
    ratios, attempts, baseline = reader.revisions()
    reader.searches(tables)
    ways = binnings(bin_pools)
    optimal = {kind: _optimal(tables, ways[kind], study.settings.budgets) for kind in ("oracle", "predicted")}
    estimation = np.array(reader.estimation)
    optimal["predicted, charged"] = {
        budget: replace(each, measured=charged(each.measured, study.settings.num_bin_samples, *estimation.T))
        for budget, each in optimal["predicted"].items()
    }
    optimal |= _piloted(pools, bills, reader)
    optimal["ratio"] = {
        budget: compute_optimal(
            {ratio_label(count, budget): pair[0] for count, pair in each.items()}, ways["oracle"], budget
        )
        for budget, each in ratios.items()
        if len(each) > 1
    }
    for budget, each in ratios.items():
        for count, (voted, majority) in each.items():
            name = f"revisions {ratio_label(count, budget)}"
            tables.setdefault(name, {})[budget] = voted
            tables.setdefault(f"{name}, majority", {})[budget] = majority
    for kind, each in optimal.items():
        name = "revisions, best ratio by bin" if kind == "ratio" else f"compute-optimal, {kind}"
        tables[name] = {budget: best.measured for budget, best in each.items()}
    return Evidence(
        study,
        tuple(pools),
        {name: budgets for name, budgets in tables.items() if budgets},
        ways,
        optimal,
        ratios,
        attempts,
        baseline,
        reader.large(),
        tuple(tuple(pool.distinct[pick].text for pick in pool.picks) for pool in next(iter(pools.values()))),
        reader.seconds,
        tuple(reader.missing),
    )


def _optimal(tables: Tables, binning: Binning, budgets: Sequence[int]) -> dict[int, Optimal]:
    """The compute-optimal figures at every budget at which there is more than one series to choose from."""
    made = {}
    for budget in budgets:
        series = {name: tables[name][budget] for name in CHOICES if budget in tables.get(name, {})}
        if budget > 1 and len(series) > 1:
            made[budget] = compute_optimal(series, binning, budget)
    return made


def _piloted(pools: Mapping[int, Sequence[Pool]], bills: Mapping, reader: _Reader) -> dict[str, dict[int, Optimal]]:
    """Compute-optimal figures by pilots: each seed's own first samples, which are part of the budget and of every vote.

    Bins and choices are made once, over the seeds that have most of the series; a problem is in the same fold for
    all of them. Every search pays for scoring the pilot, as the scheduler does where one of the bins needs scores.
    """
    made: dict[str, dict[int, Optimal]] = {kind: {} for kind in PILOTS}
    for budget in (each for each in reader.study.settings.budgets if each > PILOT):
        found = {seed: _pilot_series(own, bills, reader, budget, seed) for seed, own in pools.items()}
        most = max(map(len, found.values()))
        if most < 3:
            continue
        seeds = [seed for seed, series in found.items() if len(series) == most]
        series = {each: one_after_another([found[seed][each] for seed in seeds]) for each in found[seeds[0]]}
        folds = {index: index % reader.num_problems % 2 for index in range(len(seeds) * reader.num_problems)}
        for kind, name in PILOTS.items():
            binning = pilot_binning([pool for seed in seeds for pool in pools[seed]], name)
            best = compute_optimal(series, binning, budget, folds)
            measured, fixed = (seed_means(each, len(seeds)) for each in (best.measured, best.fixed))
            made[kind][budget] = replace(best, measured=measured, fixed=fixed)
    return made


def _pilot_series(
    pools: Sequence[Pool], bills: Mapping, reader: _Reader, budget: int, seed: int
) -> dict[str, Measured]:
    """What a pilot can be followed by, as far as it has been run with this seed."""
    cut = [replace(pool, picks=pool.picks[:budget]) for pool in pools]
    series = {name: each[budget] for name, each in pool_series([cut], bills, [budget]).items() if name in _PILOTED}
    scoring = [bill.of_answers(pool.candidates()[:PILOT])[1] for pool, bill in zip(pools, bills["prm"], strict=True)]
    series["majority"] = charged(series["majority"], 0, np.array(scoring), np.array(scoring))
    for other in _PILOTED[2:]:
        if rows := reader.complete.get((other, budget, seed)):
            series[other] = cell_measured([rows])
    return series


class _Reader:
    """Reads ledgers, and writes down seconds and what is missing."""

    def __init__(self, study: Study):
        self.study = study
        self.seconds: dict[str, float] = {}
        self.missing: list[dict[str, str]] = [
            {"what": what, "reason": reason} for what, reason in study.models.missing.items()
        ]
        self.complete: dict[tuple[str, int, int], dict[int, Row]] = {}  # (series, budget, seed): rows
        self.estimation: list[tuple[int, int]] = []  # FLOPs of the bins' pool per problem: all, the verifier's
        for cell in study.cells():
            what = f"{cell.series}, {cell.budget} generations, seed {cell.seed}"
            rows = self._read(what, "revisions" if cell.is_revision else "searches", *study.cell_run(cell))
            if rows:
                self.complete[_key(cell), cell.budget, cell.seed] = rows

    @property
    def num_problems(self) -> int:
        return len(self.study.problems)

    def _read(self, what: str, stage: str, path, config: dict) -> dict[int, Row]:
        """All rows of a ledger, or nothing where some are missing."""
        rows, seconds = read_journal(path, config, self.num_problems)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if len(rows) < self.num_problems:
            self.missing.append({"what": what, "reason": f"{len(rows)} of {self.num_problems} problems have been run"})
            return {}
        return dict(sorted(rows.items()))

    def pools(self, seed: int, stream: str = "answers") -> list[Pool]:
        rows = self._read(f"pool of {stream}, seed {seed}", "pools", *self.study.pool_run(seed, stream))
        if stream == BINS_STREAM:
            self.estimation = [(sum(row["flops"].values()), row["flops"]["verified"]) for row in rows.values()]
        scored: dict[int, Row] = {}
        if self.study.models.has_orm and stream != BINS_STREAM:
            scored = self._read(f"scores by the ORM, seed {seed}", "pools", *self.study.orm_run(seed))
        return [Pool.from_row(row, scored.get(index)) for index, row in rows.items()]

    def searches(self, tables: Tables) -> None:
        """Adds the series of searches; a series has as many seeds as are whole."""
        for series in (*SEARCHES, EXACT_BEAM, SHIPPED, *_PILOTED[2:]):
            for budget in sorted({at for name, at, _ in self.complete if name == series}):
                if rows := self._seeds(series, budget):
                    tables.setdefault(series, {})[budget] = cell_measured(rows)

    def _seeds(self, series: str, budget: int) -> list[dict[int, Row]]:
        return [rows for (name, at, _), rows in self.complete.items() if (name, at) == (series, budget)]

    def revisions(self):
        """(ratios, attempts of the revision model, attempts of the baseline)."""
        golds = [problem.answer for problem in self.study.problems]
        names = dict.fromkeys((name, budget) for name, budget, _ in self.complete)
        ratios: dict[int, dict[int, tuple[Measured, Measured]]] = {}
        for name, budget in names:
            kind, _, count = name.partition("/")
            if kind == REVISIONS:
                rows = self._seeds(name, budget)
                pair = (cell_measured(rows), by_majority(rows, golds))
                ratios.setdefault(budget, {})[int(count)] = pair
        made = []
        for kind in (REVISIONS, BASELINE):
            cells = [rows for (name, _, _), rows in self.complete.items() if name.partition("/")[0] == kind]
            made.append(Attempts.of(cells, golds) if cells else None)
        return ratios, *made

    def large(self) -> Large | None:
        if "large" in self.study.models.missing:
            return None
        rows = self._read("greedy answers of the larger policy", "large", *self.study.large_run())
        if not rows:
            return None
        models = self.study.models
        right = np.array([float(row["correct"]) for row in rows.values()])
        flops = np.array([float(Ledger.from_dict(row["ledger"]).total_flops) for row in rows.values()])
        return Large(right, flops, num_params(models.large), num_params(models.engine))


def _key(cell: Cell) -> str:
    """The series; of revisions with the number of chains."""
    return f"{cell.series}/{cell.strategy.parallel}" if cell.is_revision else cell.series
