"""The engine: models loaded once, searches run over many problems at the same time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.accounting import Ledger
from engine.config import DEFAULT_SAMPLING, EngineConfig, SearchConfig, is_endpoint, takes_fields_of
from engine.counts import check_real
from engine.errors import UserError
from engine.handle import Handle, SearchHandle
from engine.loading import AnyVerifier, Verifiers, load_models
from engine.model.digest import checkpoint_digest
from engine.prompts import PromptFormat
from engine.runtime import LLM, ModelPolicy
from engine.runtime.batcher import Search
from engine.runtime.checks import check_on_error, raise_error
from engine.runtime.driver import Driver
from engine.scheduler import ComputeOptimal, Planner, check_endpoint, search_batch
from engine.search import UNWATCHED, Answers, Models, Strategy, Verifier, Watch, check_arguments, run_search
from engine.shown import show_in_notebooks
from engine.tasks import Task, get_task
from engine.types import Problem, Rendered, Sampling, SearchResult
from engine.verifiers import as_verifier
from engine.verifiers.spec import VerifierSpec, load_spec

if TYPE_CHECKING:
    from engine.remote import RemoteModel, RemotePolicy


class Engine:
    """A policy, what verifies it, and the KV pool of each.

    Threads may search with it at the same time: their searches share every forward. A verifier that it calls may not
    search with it: a UserError says so.

    A spec of None is the format of the shipped PRM; a prompt of None puts the task's prompt as it is.
    """

    def __init__(
        self,
        policy: LLM | RemoteModel,
        *,
        prm: LLM | None = None,
        orm: LLM | None = None,
        reviser: LLM | RemoteModel | None = None,
        task: str = "walks",
        prm_spec: VerifierSpec | None = None,
        orm_spec: VerifierSpec | None = None,
        prompt: PromptFormat | None = None,
        shares_steps: bool = True,
    ):
        self.policy, self.prm, self.orm, self.reviser = policy, prm, orm, reviser
        self.specs = {"prm": prm_spec or load_spec("home"), "orm": orm_spec}
        self.task: Task = get_task(task)
        self.prompt = prompt
        delimiter = prompt.delimiter if prompt is not None else None
        self.step_delimiter = self.task.delimiter if delimiter is None else delimiter
        self.stops_at_box = prompt is not None and prompt.stops_at_box
        self._policy = self._sampler(policy)
        self._reviser = self._policy if reviser is policy else None if reviser is None else self._sampler(reviser)
        models = {name: model for name, model in (("prm", prm), ("orm", orm)) if model is not None}
        self._verifiers = Verifiers(policy, models, self.specs, self.task, shares_steps)
        self.trunk_head_folder: Path | None = None  # where `load` found one
        self._digests: dict[Path, str] = {}
        self._driver = Driver()

    @classmethod
    @takes_fields_of(EngineConfig)
    def load(cls, *policy: str | Path, **fields: Any) -> Engine:
        """Loads checkpoints from Hugging Face folders; takes the fields of `EngineConfig`, which says what each is.

        With `policy="home"` the shipped PRM and trunk head come along unless others are named, and so do the ORM
        and the reviser where the package has them. `reviser` samples for `Revisions`; the policy's own folder may be
        named (a policy that was not trained to revise, shown its own attempts), and is loaded once. The format of a
        PRM or ORM is detected, or named by a built-in spec or a spec file. `prompt_style` is one of
        `engine.prompts.PROMPT_STYLES`; `system_prompt` (a text or a file), `few_shot` (a file, see
        `engine.prompts.styles.read_few_shot`) and `step_delimiter` replace what the style has of its own.
        Raises UserError for a folder that is missing, damaged or not supported, and without a GPU.
        """
        return cls.from_config(EngineConfig(*policy, **fields))

    @classmethod
    def from_config(cls, config: EngineConfig) -> Engine:
        """As `load`, from a config that is there already."""
        loaded = load_models(config)
        engine = cls(
            loaded.policy,
            prm=loaded.verifiers.get("prm"),
            orm=loaded.verifiers.get("orm"),
            reviser=loaded.reviser,
            task=config.task,
            prm_spec=loaded.specs.get("prm"),
            orm_spec=loaded.specs.get("orm"),
            prompt=loaded.prompt,
            shares_steps=config.shares_steps,
        )
        engine.trunk_head_folder = loaded.trunk_head
        return engine

    def _sampler(self, llm: LLM | RemoteModel) -> ModelPolicy | RemotePolicy:
        if isinstance(llm, LLM):
            return ModelPolicy(llm, self.step_delimiter, encode=self.prompt_ids, stops_at_box=self.stops_at_box)
        from engine.remote import RemotePolicy  # here, as nothing else needs its HTTP library

        return RemotePolicy(llm, self.step_delimiter, self.prompt)

    def given(self, prompt: str) -> Sequence[int] | Sequence[str]:
        """What the policy is given for a problem's prompt: token ids, or the text that an endpoint makes them of."""
        return self._policy.encode(prompt)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The token ids that a policy which is loaded here is given for a problem's prompt."""
        if isinstance(prompt, Rendered):
            return self.policy.encode(prompt, is_start=False)
        if self.prompt is None:
            return self.policy.encode(prompt)
        # A chat template writes the special tokens of a text itself.
        return self.policy.encode(self.prompt.render(prompt), is_start=self.prompt.template is None)

    def search(
        self,
        problems: Sequence[str | dict | Problem],
        strategy: Strategy | Planner,
        budget: int = 16,
        *,
        seed: int = 0,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_tokens: int | None = None,
        agg_strategy: str = "last",
        verifier: AnyVerifier = "prm",
        config: SearchConfig | None = None,
    ) -> list[SearchResult]:
        """Searches all problems and returns results in input order; options as for `search_iter`."""
        options = SearchConfig(
            budget, seed=seed, sampling=sampling, max_tokens=max_tokens, agg_strategy=agg_strategy, verifier=verifier
        )
        return self._search_all(self.as_problems(problems), strategy, options.unless(config))

    def search_iter(
        self,
        problems: Sequence[str | dict | Problem],
        strategy: Strategy | Planner,
        budget: int = 16,
        *,
        seed: int = 0,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_tokens: int | None = None,
        agg_strategy: str = "last",
        verifier: AnyVerifier = "prm",
        config: SearchConfig | None = None,
        on_error: str = "raise",
    ) -> Iterator[tuple[int, SearchResult | Exception]]:
        """Yields (index, result) as problems are finished.

        `budget` is a number of sampled answers per problem. `verifier` is "prm", "trunk" (a head on the policy's
        trunk), "orm" (for strategies that score whole answers), "oracle", a function `(prompt, steps) -> score of the
        last step`, or any object with the Verifier protocol. Of them, the shipped ORM's format alone judges a revision
        knowing the attempts before it.
        `max_tokens` bounds a completion. A `config` holds all of these, and is given in the place of them.

        Raises UserError for a bad argument or a prompt over the context, PoolTooSmall (a ValueError) for a problem that
        cannot fit the KV pool; the engine can be used again after it. With `on_error` "yield" what a single problem
        raises is yielded in the place of its result, and the others go on.
        """
        check_on_error(on_error)
        options = SearchConfig(
            budget, seed=seed, sampling=sampling, max_tokens=max_tokens, agg_strategy=agg_strategy, verifier=verifier
        )
        yield from self._search(self.as_problems(problems), strategy, options.unless(config), on_error)

    def submit(
        self,
        problem: str | dict | Problem,
        strategy: Strategy | Planner,
        config: SearchConfig | None = None,
        *,
        deadline: float | None = None,
        **fields: Any,
    ) -> SearchHandle:
        """Starts one search beside all that run, in a thread of the engine's own, and returns at once.

        Options are those of a `config`, or its `fields` one by one, as for `search_iter`; the result is the same. After
        `deadline` seconds the search ends with what it has: nothing more is drawn, and the result, whose `stopped_by`
        is "deadline", has the best answer so far (None where there is none). Raises UserError for a bad argument; what
        happens later, a prompt over the context among it, is raised by `await handle` and `handle.result()`.
        """
        if deadline is not None and not check_real("deadline", deadline) >= 0:
            raise UserError(f"deadline must be at least 0 seconds, got {deadline}")
        (asked,) = self.as_problems([problem])
        models, search, rows = self._prepared(strategy, SearchConfig(**fields).unless(config))
        handle = SearchHandle(asked, deadline)
        self.start(handle, models, lambda: search(asked, handle.ledger, handle.watch), rows)
        return handle

    def start(self, handle: Handle, models: Sequence[LLM], make: Callable[[], Search], rows: int) -> None:
        """Runs in the engine's own thread what awaits requests to models; `rows` branches generate at once."""
        handle.attach(job := self._driver.job(models, (make() for _ in range(1)), rows))
        self._driver.start(job, handle.deliver)

    def close(self) -> None:
        """Cancels every search that `submit` has started and that still runs."""
        self._driver.cancel_all()

    def search_batch(
        self,
        problems: Sequence[str | dict | Problem],
        strategy: ComputeOptimal,
        total: int,
        config: SearchConfig | None = None,
        **fields: Any,
    ) -> list[SearchResult]:
        """Divides `total` generations over all problems by expected gain, and searches them; results in order.

        Options are those of a `config`, whose budget is not read, or its `fields` one by one, as for `search_iter`.
        Where the strategy's calibration holds for other models its fallback gets an equal share for every problem.
        Raises UserError as `search_iter` does, and for a total that is too small.
        """
        asked, options = self.as_problems(problems), SearchConfig(**fields).unless(config)
        checked = strategy.checked(self.conditions(strategy, options))
        if not isinstance(checked, ComputeOptimal):
            return self._search_all(asked, checked, replace(options, budget=total // max(1, len(asked))))
        if not checked.is_scored:
            return search_batch(self._searches(options), asked, checked, total)
        with self.resolve_verifier(options.verifier).cached() as judge:  # one for all rounds: each reads a step once
            return search_batch(self._searches(replace(options, verifier=judge)), asked, checked, total)

    def _searches(self, config: SearchConfig) -> Callable[[Sequence[Problem], Planner, int], list[SearchResult]]:
        """What `search_batch` runs its rounds with: problems, planner and budget of a round -> results."""

        def search(problems: Sequence[Problem], planner: Planner, budget: int) -> list[SearchResult]:
            return self._search_all(problems, planner, replace(config, budget=budget))

        return search

    def _search_all(
        self, problems: Sequence[Problem], strategy: Strategy | Planner, config: SearchConfig
    ) -> list[SearchResult]:
        """Results in the order of the problems."""
        found = dict(self._search(problems, strategy, config))
        return [found[index] for index in range(len(problems))]

    def _search(
        self, problems: Sequence[Problem], strategy: Strategy | Planner, config: SearchConfig, on_error: str = "raise"
    ) -> Iterator[tuple[int, SearchResult | Exception]]:
        """Checks what is asked for, then runs one search per problem side by side, as `search_iter` yields them."""
        models, search, rows = self._prepared(strategy, config)
        searches = (search(problem, Ledger(), UNWATCHED) for problem in problems)
        with closing(self._driver.results(models, searches, rows)) as results:
            for index, result in results:
                raise_error(result, on_error)
                yield index, result

    def _prepared(
        self, strategy: Strategy | Planner, config: SearchConfig
    ) -> tuple[list[LLM], Callable[[Problem, Ledger, Watch], Search], int]:
        """Checks what is asked for. Returns the models that run, what searches a problem, and its most branches."""
        if config.max_tokens is None:
            config = replace(config, max_tokens=self.task.max_tokens)
        if isinstance(strategy, type) or not hasattr(strategy, "groups"):
            raise UserError(f"strategy must be a strategy such as BestOfN(), got {repr(strategy)[:100]}")
        if not isinstance(self.policy, LLM):
            check_endpoint(strategy, is_chat=self.prompt is not None and self.prompt.is_served)
        if isinstance(strategy, ComputeOptimal):
            strategy = strategy.checked(self.conditions(strategy, config))
        judge = self.resolve_verifier(config.verifier) if strategy.is_scored else None
        check_arguments(strategy, judge, config)
        self._check_reviser(strategy, judge)
        samplers = [each and each.stopping(config.stop_texts) for each in (self._policy, self._reviser)]
        models = Models(samplers[0], judge, samplers[1])
        answers = Answers(self.task.extract, self.task.grade, self.task.classify)

        def search(problem: Problem, ledger: Ledger, watch: Watch) -> Search:
            more = {"ledger": ledger, "watch": watch}
            if isinstance(strategy, Planner):
                return strategy.search(problem, models, config, answers, **more)
            return run_search(problem, strategy, models, config, answers, **more)

        return self._models(strategy, judge), search, strategy.rows(config.budget)

    def _check_reviser(self, strategy: Strategy | Planner, judge: Verifier | None) -> None:
        Models(self._policy, judge, self._reviser).sampler(strategy)
        if strategy.revises and judge is not None and judge.reads_trunk and not self.reviser.has_score_head:
            raise UserError(
                f"verifier 'trunk' is a head on the policy's trunk, not on that of the reviser at {self.reviser.folder}"
            )

    def _models(self, strategy: Strategy | Planner, judge: Verifier | None) -> list[LLM]:
        """The models that a search runs, those that generate first."""
        samplers = [self.policy]
        if strategy.revises:
            samplers = [*samplers, self.reviser] if isinstance(strategy, Planner) else [self.reviser]
        judges = [] if judge is None or judge.llm is None else [judge.llm]
        return list(dict.fromkeys((*samplers, *judges)))

    def conditions(
        self, strategy: Strategy | Planner, config: SearchConfig | None = None, **fields: Any
    ) -> dict[str, object]:
        """What accuracies measured with these models and options (a `config`, or its `fields`) hold for, in JSON."""
        config = SearchConfig(**fields).unless(config)
        verifier = config.verifier
        name = verifier if isinstance(verifier, str) else as_verifier(verifier).name
        judge = {"prm": self.prm, "orm": self.orm}.get(name)
        folder = self.trunk_head_folder if name == "trunk" else None if judge is None else judge.folder
        return {
            "task": self.task.name,
            "policy": self._digest(self.policy.folder),
            "verifier": name if strategy.is_scored else None,
            "verifier_digest": self._digest(folder) if strategy.is_scored and folder else None,
            "verifier_spec": json.dumps(asdict(self.specs[name])) if strategy.is_scored and judge else None,
            **({"reviser": self._digest(self.reviser.folder)} if strategy.revises and self.reviser else {}),
            "prompt": None if self.prompt is None else self.prompt.render("?"),
            **({} if self.step_delimiter == self.task.delimiter else {"step_delimiter": self.step_delimiter}),
            "agg_strategy": config.agg_strategy if strategy.is_scored else None,
            "max_tokens": self.task.max_tokens if config.max_tokens is None else config.max_tokens,
            **asdict(config.sampling),
        }

    def _digest(self, folder: Path | str) -> str:
        """The digest of a loaded checkpoint, computed once; of an endpoint its name."""
        if is_endpoint(folder):
            return str(folder)
        if folder not in self._digests:
            self._digests[folder] = checkpoint_digest(folder)
        return self._digests[folder]

    def resolve_verifier(self, verifier: AnyVerifier) -> Verifier:
        """A verifier from its name, a function, or itself."""
        return self._verifiers.resolve(verifier)

    def as_problems(self, problems: Sequence[str | dict | Problem]) -> list[Problem]:
        """Problems from texts, or from dicts with `problem` and perhaps `answer` and `id`.

        Raises UserError for what is no list of these, one problem alone included, and for one without a text.
        """
        if isinstance(problems, str | Mapping | Problem) or not isinstance(problems, Iterable):
            raise UserError(f"problems must be a list of problems, got {repr(problems)[:100]}")
        return [self.as_problem(problem, index) for index, problem in enumerate(problems)]

    def as_problem(self, problem: str | dict | Problem, index: int) -> Problem:
        """One Problem; `index` is its id where it has none of its own."""
        return self.task.as_problem(problem, index)


show_in_notebooks()
