"""The engine: models loaded once, searches run over many problems at the same time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from engine.accounting import Ledger
from engine.config import SearchConfig
from engine.errors import UserError
from engine.model import HOME, load_trunk_head, read_config, resolve_device, resolve_dtype, resolve_folder
from engine.model.digest import checkpoint_digest
from engine.prompts import PromptFormat, build_prompt, read_system_prompt
from engine.runtime import LLM, Batcher, ModelPolicy, shared_blocks
from engine.scheduler import ComputeOptimal, Planner, search_batch
from engine.search import Answers, Models, Strategy, Verifier, check_arguments, run_search
from engine.search.registry import VERIFIERS
from engine.tasks import Task, get_task
from engine.types import Problem, Sampling, SearchResult
from engine.verifiers import OracleVerifier, TrunkVerifier, as_verifier
from engine.verifiers.detect import find_spec, trunk_architecture
from engine.verifiers.loading import build_verifier, load_verifier_model
from engine.verifiers.spec import VerifierSpec, load_spec

DEFAULT_SAMPLING = Sampling(temperature=1.0)


class Engine:
    """A policy, what verifies it, and the KV pool of each. Not thread-safe.

    A spec of None is the format of the shipped PRM; a prompt of None puts the task's prompt as it is.
    """

    def __init__(
        self,
        policy: LLM,
        *,
        prm: LLM | None = None,
        orm: LLM | None = None,
        reviser: LLM | None = None,
        task: str = "chain",
        prm_spec: VerifierSpec | None = None,
        orm_spec: VerifierSpec | None = None,
        prompt: PromptFormat | None = None,
        shares_steps: bool = True,
    ):
        self.policy, self.prm, self.orm, self.reviser = policy, prm, orm, reviser
        self.specs = {"prm": prm_spec or load_spec("home"), "orm": orm_spec}
        self.task: Task = get_task(task)
        self.prompt, self.shares_steps = prompt, shares_steps
        delimiter = prompt.delimiter if prompt is not None else None
        self.step_delimiter = self.task.delimiter if delimiter is None else delimiter
        self.stops_at_box = prompt is not None and prompt.stops_at_box
        self._policy = self._sampler(policy)
        self._reviser = self._policy if reviser is policy else None if reviser is None else self._sampler(reviser)
        self._judges: dict[str, Verifier] = {}
        self.trunk_head_folder: Path | None = None  # where `load` found one
        self._digests: dict[Path, str] = {}

    @classmethod
    def load(
        cls,
        policy: str | Path = "home",
        *,
        prm: str | Path | None = None,
        prm_spec: str | Path | None = None,
        orm: str | Path | None = None,
        orm_spec: str | Path | None = None,
        trunk_head: str | Path | None = None,
        reviser: str | Path | None = None,
        task: str = "chain",
        prompt_style: str = "plain",
        system_prompt: str | None = None,
        few_shot: str | Path | None = None,
        step_delimiter: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch: int | None = None,
        num_blocks: int | None = None,
        shares_steps: bool = True,
    ) -> Engine:
        """Loads checkpoints from Hugging Face folders; "home" is the shipped set.

        With `policy="home"` the shipped PRM and trunk head come along unless others are named, and so do the ORM
        and the reviser where the package has them. `reviser` samples for `Revisions`; the policy's own folder may be
        named (a policy that was not trained to revise, shown its own attempts), and is loaded once. The format of a
        PRM or ORM is detected, or named by a built-in spec or a spec file. `prompt_style` is one of
        `engine.prompts.PROMPT_STYLES`; `system_prompt` (a text or a file), `few_shot` (a file, see
        `engine.prompts.styles.read_few_shot`) and `step_delimiter` go before the style's own.
        `max_batch` bounds the branches of one forward and changes no result (None: what is fastest);
        `num_blocks` the KV pool of each model (blocks of 16 tokens; by default 1 GiB on a CPU, and as many blocks for
        each as fit the free memory of a GPU). `device` is "cpu" or "cuda", `dtype` "float32", "bfloat16", on a GPU also
        "float16". With `shares_steps` a PRM or ORM reads a step (an ORM an answer) that several branches of a
        problem say at the same place once for all. Raises UserError for a folder that is missing,
        damaged or not supported, and without a GPU.
        """
        place, torch_dtype = resolve_device(device).device, resolve_dtype(dtype, device)
        if max_batch is not None and max_batch < 1:
            raise UserError(f"max_batch must be at least 1, got {max_batch}")
        if str(policy) == "home":
            prm, trunk_head = prm or "home", trunk_head or "home"
            orm, reviser = orm or home_part("orm"), reviser or home_part("reviser")
        folder = resolve_folder(policy)
        prompt = build_prompt(
            folder,
            prompt_style,
            system=None if system_prompt is None else read_system_prompt(system_prompt),
            few_shot=few_shot,
            delimiter=step_delimiter,
            as_prompt=get_task(task).prompt,
        )
        head = None
        if trunk_head is not None:
            head = load_trunk_head(resolve_folder(trunk_head, "trunk_head"), read_config(folder), torch_dtype, place)
        if num_blocks is None and device == "cuda":
            found = [resolve_folder(name, part) for part, name in (("prm", prm), ("orm", orm)) if name is not None]
            architectures = {folder: None} | {judge: trunk_architecture(judge) for judge in found}
            architectures |= {} if reviser is None else {resolve_folder(reviser, "reviser"): None}
            num_blocks = shared_blocks(architectures, torch_dtype, place)
        limits = {"device": device, "dtype": dtype, "max_batch": max_batch, "num_blocks": num_blocks}
        judges: dict = {}
        for part, name, chosen, judged in (("prm", prm, prm_spec, "steps"), ("orm", orm, orm_spec, "answers")):
            if name is None and chosen is not None:
                raise UserError(f"{part}_spec {str(chosen)!r} has no effect without {part}")
            if name is not None:
                judge = resolve_folder(name, part)
                spec = judges[f"{part}_spec"] = find_spec(judge, chosen, judges=judged)
                judges[part] = load_verifier_model(judge, spec, **limits)
        llm = LLM.load(folder, trunk_head=head, **limits)
        if reviser is not None:
            judges["reviser"] = _load_reviser(reviser, llm, **limits)
        engine = cls(llm, task=task, prompt=prompt, shares_steps=shares_steps, **judges)
        engine.trunk_head_folder = None if trunk_head is None else resolve_folder(trunk_head, "trunk_head")
        return engine

    def _sampler(self, llm: LLM) -> ModelPolicy:
        return ModelPolicy(llm, self.step_delimiter, encode=self.prompt_ids, stops_at_box=self.stops_at_box)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The token ids that the policy is given for a problem's prompt."""
        if self.prompt is None:
            return self.policy.encode(prompt)
        # A chat template writes the special tokens of a text itself.
        return self.policy.encode(self.prompt.render(prompt), is_start=self.prompt.template is None)

    def search(
        self,
        problems: Sequence[str | dict | Problem],
        strategy: Strategy | Planner,
        budget: int = 16,
        **options,
    ) -> list[SearchResult]:
        """Searches all problems and returns results in input order; options as for `search_iter`."""
        problems = [self.as_problem(problem, index) for index, problem in enumerate(problems)]
        results: list[SearchResult | None] = [None] * len(problems)
        for index, result in self.search_iter(problems, strategy, budget, **options):
            results[index] = result
        return results

    def search_batch(
        self, problems: Sequence[str | dict | Problem], strategy: ComputeOptimal, total: int, **options
    ) -> list[SearchResult]:
        """Divides `total` generations over all problems by expected gain, and searches them; results in order.

        Options as for `search_iter`. Where the strategy's calibration holds for other models its
        fallback gets an equal share for every problem. Raises UserError as `search_iter` does, and
        for a total that is too small.
        """
        problems = [self.as_problem(problem, index) for index, problem in enumerate(problems)]
        checked = strategy.checked(self.conditions(strategy, **options))
        if not isinstance(checked, ComputeOptimal):
            return self.search(problems, checked, total // max(1, len(problems)), **options)

        def search(chosen: Sequence[Problem], planner: Planner, budget: int) -> list[SearchResult]:
            return self.search(chosen, planner, budget, **options)

        if not checked.is_scored:
            return search_batch(search, problems, checked, total)
        with self.resolve_verifier(options.pop("verifier", "prm")).cached() as judge:
            options["verifier"] = judge  # one for all rounds: none reads what another has read
            return search_batch(search, problems, checked, total)

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
        verifier: str | Verifier | Callable[[str, list[str]], float] = "prm",
    ) -> Iterator[tuple[int, SearchResult]]:
        """Yields (index, result) as problems are finished.

        `budget` is a number of sampled answers per problem. `verifier` is "prm", "trunk" (a head on
        the policy's trunk), "orm" (for strategies that score whole answers), "oracle", a function
        `(prompt, steps) -> score of the last step`, or any object with the Verifier protocol. Of them, the
        shipped ORM's format alone judges a revision knowing the attempts before it.
        `max_tokens` bounds a completion.

        Raises UserError for a bad argument or a prompt over the context, PoolTooSmall (a
        ValueError) for a problem that cannot fit the KV pool; the engine can be used again after it.
        """
        problems = [self.as_problem(problem, index) for index, problem in enumerate(problems)]
        max_tokens = self.task.max_tokens if max_tokens is None else max_tokens
        if isinstance(strategy, ComputeOptimal):
            settings = {"sampling": sampling, "max_tokens": max_tokens, "agg_strategy": agg_strategy}
            strategy = strategy.checked(self.conditions(strategy, verifier=verifier, **settings))
        judge = self.resolve_verifier(verifier) if strategy.is_scored else None
        config = SearchConfig(budget, seed, sampling, max_tokens, agg_strategy, verifier)
        check_arguments(strategy, judge, config)
        self._check_reviser(strategy, judge)
        models = Models(self._policy, judge, self._reviser)
        answers = Answers(self.task.extract, self.task.grade, self.task.classify)
        if isinstance(strategy, Planner):
            searches = (strategy.search(problem, models, config, answers, ledger=Ledger()) for problem in problems)
        else:
            searches = (run_search(each, strategy, models, config, answers, ledger=Ledger()) for each in problems)
        for index, result in Batcher(self._models(strategy, judge)).run(searches, rows_each=strategy.rows(budget)):
            if isinstance(result, Exception):
                raise result
            yield index, result

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
        self,
        strategy: Strategy | Planner,
        *,
        verifier: str | Verifier | Callable[[str, list[str]], float] = "prm",
        sampling: Sampling = DEFAULT_SAMPLING,
        max_tokens: int | None = None,
        agg_strategy: str = "last",
        **_: object,
    ) -> dict[str, object]:
        """What accuracies measured with these models and options of a search hold for, as JSON values."""
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
            "agg_strategy": agg_strategy if strategy.is_scored else None,
            "max_tokens": self.task.max_tokens if max_tokens is None else max_tokens,
            **asdict(sampling),
        }

    def _digest(self, folder: Path) -> str:
        """Of a checkpoint that this engine has loaded; computed once."""
        if folder not in self._digests:
            self._digests[folder] = checkpoint_digest(folder)
        return self._digests[folder]

    def resolve_verifier(self, verifier: str | Verifier | Callable[[str, list[str]], float]) -> Verifier:
        """A verifier from its name, a function, or itself."""
        if not isinstance(verifier, str):
            return as_verifier(verifier)
        if verifier in ("prm", "orm"):
            model = self.prm if verifier == "prm" else self.orm
            if model is None:
                raise UserError(f"verifier {verifier!r} was asked for, but no {verifier.upper()} is loaded")
            if verifier not in self._judges:
                self._judges[verifier] = build_verifier(model, self.specs[verifier], self.policy, self.shares_steps)
            return self._judges[verifier]
        if verifier == "trunk":
            if not self.policy.has_score_head:
                raise UserError("verifier 'trunk' was asked for, but no trunk head is loaded")
            return TrunkVerifier()
        if verifier == "oracle":
            return OracleVerifier.from_first_wrong_step(self.task.first_wrong_step)
        raise UserError(f"verifier must be one of {', '.join(VERIFIERS)}, got {verifier!r}")

    def as_problem(self, problem: str | dict | Problem, index: int) -> Problem:
        """A Problem from a text, or from a dict with `problem` and perhaps `answer` and `id`."""
        if isinstance(problem, Problem):
            return problem
        row = {"problem": problem} if isinstance(problem, str) else problem
        text = row.get("problem") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"problem {index} needs a text under 'problem', got {str(row)[:100]}")
        answer = None if row.get("answer") is None else self.task.gold(str(row["answer"]))
        return Problem(str(row.get("id", index)), self.task.prompt(text), answer)


def home_part(part: str) -> str | None:
    """ "home" where the package comes with this part of the shipped set."""
    return "home" if (HOME / part).is_dir() else None


def _load_reviser(name: str | Path, policy: LLM, **limits) -> LLM:
    """The policy itself where its own folder is named. Raises UserError for a model with other tokens."""
    folder = resolve_folder(name, "reviser")
    if folder.resolve() == policy.folder.resolve():
        return policy
    reviser = LLM.load(folder, **limits)
    if reviser.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(f"the reviser at {folder} must have the vocabulary of the policy at {policy.folder}")
    return reviser
