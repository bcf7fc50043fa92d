"""The model `ttc` of lm-evaluation-harness: answers by a search, likelihoods by the plain policy.

Importing this module registers it. `ttc-eval` does so, and then calls lm-eval's command line.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from engine.accounting import Ledger
from engine.chats import chat_format
from engine.cli.inputs import check_prompts
from engine.config import SearchConfig
from engine.counts import shown
from engine.errors import UserError
from engine.files import write_atomically
from engine.plugins.eval_requests import Asked, read_gen_kwargs
from engine.plugins.options import Searcher
from engine.prompts.boxed import after_thoughts
from engine.prompts.stops import before_stops
from engine.prompts.template import read_tokenizer_config, special_tokens
from engine.results import Row, error_row, result_row, row_line
from engine.runtime import LLM
from engine.runtime.given import token_logprobs
from engine.search.ranking import ranked
from engine.types import Problem, Rendered, SearchResult

_DEFAULT_DEVICE = "cuda:0"  # lm-eval's own, where none is named
_CACHE_KEY = "ttc configuration"

Message = Mapping[str, str]
Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, and token ids of context and continuation


@register_model("ttc")
class SearchingLM(TemplateLM):
    """Model arguments are the options of `ttc search`, by their names on its command line with underscores.

    `pretrained` is another name of `policy`: by it lm-eval names the folder of its results.
    `ledger` names a file for the rows of all searches, as `ttc search` writes them, with lm-eval's `task`, `doc_id` and
    `repeat`. `on_error` is stop or row: with row a problem that fails is answered by an empty text.
    Raises UserError for whatever `ttc search` refuses.
    """

    last: SearchingLM | None = None  # the one that was made last, for `ttc-eval`

    def __init__(
        self,
        *,
        ledger: str | None = None,
        on_error: str = "stop",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        pretrained: str | None = None,
        **options: object,
    ):
        super().__init__()
        if pretrained is not None and "policy" in options:
            raise UserError(f"policy and pretrained are one option, got {shown(options['policy'])} and {pretrained!r}")
        options |= {} if pretrained is None else {"policy": pretrained}
        if batch_size not in (None, 1, "1", "auto") or max_batch_size is not None:
            size = batch_size if max_batch_size is None else max_batch_size
            raise UserError(
                "ttc batches by itself whatever is pending, so that a batch size has no effect (max_batch among the "
                f"model's arguments bounds a forward), got {shown(size)}"
            )
        if on_error not in ("stop", "row"):
            raise UserError(f"on_error must be stop or row, got {shown(on_error)}")
        self.searcher = Searcher.load(options)
        self.engine = self.searcher.engine
        self.ledger_path, self.keeps_errors = ledger, on_error == "row"
        self.rows: list[Row] = []  # one for every answer
        self.scored = Ledger()  # what likelihoods have cost
        self._chat = chat_format(self.engine) if isinstance(self.engine.policy, LLM) else None
        self._prompts: dict[str, str] = {}  # by the text of a conversation: what its user says last
        self._is_chat = False  # whether the next answers are to conversations alone
        type(self).last = self

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, object], additional_config: Mapping | None = None):
        """Called by lm-eval. What is named among the model's arguments goes before lm-eval's own options."""
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if more.get("device") == _DEFAULT_DEVICE and "device" not in arg_dict and not torch.cuda.is_available():
            more["device"] = "cpu"
            warnings.warn(
                f"lm-eval's device is {_DEFAULT_DEVICE}, which is not there: ttc runs on the CPU", stacklevel=2
            )
        return cls(**{**more, **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping | None = None):
        """Called by lm-eval, as `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # -- answers ----------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The winning answers, before the first of the texts `until` and without thoughts.

        All requests that ask for the same sampling are searched side by side. The id of a problem, which seeds its
        draws, is the `id` of its row, or else its number; a repeat has one of its own.
        """
        asked = [read_gen_kwargs(self.searcher, request.args[1]) for request in requests]
        repeats: Counter[tuple] = Counter()
        problems, origins = [], []
        for request in requests:
            key = request.task_name, request.doc_id, request.idx
            problems.append(self._problem(request, repeats[key]))
            origins.append((request.task_name, request.doc_id, repeats[key]))
            repeats[key] += 1
        rows: dict[int, Row] = {}
        texts: dict[int, str] = {}
        groups: dict[SearchConfig, list[int]] = {}
        for index, each in enumerate(asked):
            groups.setdefault(each.config, []).append(index)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="ttc searches") as progress:
            for config, indices in groups.items():
                for index, found in self._found(config, indices, problems, origins):
                    rows[index] = self._row(problems[index], found, config, origins[index])
                    texts[index] = "" if isinstance(found, Exception) else _answer(found, asked[index])
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                    progress.update()
        self._is_chat = False
        self.rows += (rows[index] for index in range(len(requests)))
        self._write_ledger()
        return [texts[index] for index in range(len(requests))]

    def _problem(self, request: Instance, repeat: int) -> Problem:
        """What a request asks. Raises UserError for a conversation that this object has not rendered."""
        context = request.args[0]
        prompt = self._prompts.get(context, None if self._is_chat else context)
        if prompt is None:
            raise UserError(
                "ttc tells verifiers what the user says, which a cached request leaves out: run without "
                f"--cache_requests, got {context[:60]!r}"
            )
        doc = request.doc if isinstance(request.doc, Mapping) else {}
        name = str(request.doc_id if doc.get("id") is None else doc["id"])
        problem = self.engine.as_problem({"problem": prompt, "id": f"{name}#{repeat}" if repeat else name}, 0)
        return replace(problem, conversation=Rendered(context)) if context in self._prompts else problem

    def _found(
        self, config: SearchConfig, indices: Sequence[int], problems: Sequence[Problem], origins: Sequence[tuple]
    ) -> Iterator[tuple[int, SearchResult | Exception]]:
        """Results of some of the problems as they are finished; those that no model can hold come first."""
        engine, strategy = self.engine, self.searcher.strategy
        chosen = [problems[index] for index in indices]
        names = [f"task {task}, document {doc_id}" for task, doc_id, _ in (origins[index] for index in indices)]
        judge = engine.resolve_verifier(config.verifier) if strategy.is_scored else None
        refused = check_prompts(engine, chosen, names, judge, keeps_errors=self.keeps_errors)
        yield from ((indices[place], error) for place, error in refused.items())
        todo = [place for place in range(len(indices)) if place not in refused]
        on_error = "yield" if self.keeps_errors else "raise"
        asked = [chosen[place] for place in todo]
        for place, found in engine.search_iter(asked, strategy, config=config, on_error=on_error):
            yield indices[todo[place]], found

    def _row(self, problem: Problem, found: SearchResult | Exception, config: SearchConfig, origin: tuple) -> Row:
        """As `ttc search` writes it, and where in lm-eval's samples it belongs."""
        named = dict(zip(("task", "doc_id", "repeat"), origin, strict=True))
        if isinstance(found, Exception):
            how = {"strategy": self.searcher.strategy.name, "budget": config.budget, "seed": config.seed}
            return error_row(problem, found, **how) | named
        return result_row(found) | named | {"temperature": config.sampling.temperature}

    def _write_ledger(self) -> None:
        if self.ledger_path is not None:
            write_atomically(self.ledger_path, self.ledger_bytes())

    def ledger_bytes(self) -> bytes:
        """The rows of all searches until now as JSONL."""
        return b"".join(map(row_line, self.rows))

    def get_model_info(self) -> dict[str, object]:
        """For lm-eval's results: the search, and what all of it has cost."""
        total = Ledger()
        total.include(self.scored)
        for row in self.rows:
            if "ledger" in row:
                total.include(Ledger.from_dict(row["ledger"]))
        bill = {**total.as_dict(), "total_flops": total.total_flops}
        return {"ttc": {**self.searcher.describe(), "digest": self.searcher.digest(), "ledger": bill}}

    # -- likelihoods ------------------------------------------------------------------------

    @property
    def llm(self) -> LLM:
        """The plain policy. Raises UserError for an endpoint."""
        if not isinstance(self.engine.policy, LLM):
            raise UserError(
                "an endpoint tells no likelihoods of given texts: load the policy here for such tasks, got "
                f"{self.engine.policy.folder}"
            )
        return self.engine.policy

    @property
    def max_length(self) -> int:
        return self.llm.config.context

    @property
    def eot_token_id(self) -> int:
        return self._special("eos_token", self.llm.config.eos_token_ids)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text without a context: the beginning of text, or else its end."""
        return self._special("bos_token", [self.eot_token_id])

    def _special(self, name: str, others: Sequence[int]) -> int:
        text = special_tokens(read_tokenizer_config(self.llm.folder)).get(name)
        token = None if text is None else self.llm.tokenizer.token_to_id(text)
        if token is None and not others:
            raise UserError(f"the tokenizer at {self.llm.folder} has neither a beginning nor an end of text")
        return others[0] if token is None else token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids as lm-eval's model `hf` has them: with special tokens, unless the text begins with one itself."""
        if add_special_tokens is None:
            begin = self.llm.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (begin and string.startswith(begin))
        return self.llm.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    def _loglikelihood_tokens(self, requests: list[Pair], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, whether each token is the likeliest) of continuations.

        A context that the window does not hold is cut at its start. Equal requests are computed once.
        """
        texts: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                most, texts_of = self.max_length, shown(requests[index][0])
                raise UserError(f"a continuation has 1 to {most} tokens, got {len(continuation)}: {texts_of}")
            ids = tuple((context + continuation)[-(self.max_length + 1) :])
            texts.setdefault((ids, len(ids) - len(continuation)), []).append(index)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        unique = list(texts)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="ttc likelihoods") as progress:
            for place, found in token_logprobs(self.llm, unique, ledger=self.scored):
                answer = sum(each.logprob for each in found), all(each.is_likeliest for each in found)
                for index in texts[unique[place]]:
                    answers[index] = answer
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                    progress.update()
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context that overlap by one token."""
        windows: list[Pair] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            ids = self.tok_encode(text)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(index)
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for index, (logprob, _) in zip(owners, found, strict=True):
            totals[index] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # -- conversations and caches -----------------------------------------------------------

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A conversation by the policy's template. One that ends with the assistant's words goes on with them."""
        chat = self._chat_format()
        said, begun = list(chat_history), ""
        if not add_generation_prompt:
            begun = said.pop()["content"]
        text = chat.render_chat(said) + begun
        self._prompts[text] = said[-1]["content"]
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Called by lm-eval where conversations are asked for. Raises UserError for a template that is named."""
        if isinstance(chat_template, str):
            raise UserError(f"ttc takes the policy's default chat template, and none by name, got {chat_template!r}")
        self._is_chat = bool(chat_template)
        return self._chat_format().template.source if chat_template else None

    def _chat_format(self):
        if self._chat is None:
            raise UserError(
                f"--apply_chat_template needs a chat template, the model at {self.engine.policy.folder} has none"
            )
        return self._chat

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests: what renders conversations, by its contents."""
        return f"ttc-{self.searcher.digest()}"

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Takes lm-eval's cache of answers, whose keys are the requests alone.

        Raises UserError for one with answers of another configuration.
        """
        cache = cache_hook.dbdict
        if cache is not None:
            digest = self.searcher.digest()
            if len(cache) and cache.get(_CACHE_KEY) != digest:
                raise UserError(
                    "the cache holds answers of another strategy, budget, seed or model: name one for each "
                    f"configuration with --use_cache, got {cache.filename}"
                )
            cache[_CACHE_KEY] = digest
        super().set_cache_hook(cache_hook)


def _answer(result: SearchResult, asked: Asked) -> str:
    """The text of the best candidate, cut."""
    best = ranked(result)
    return before_stops(after_thoughts(result.candidates[best[0]].text) if best else "", asked.until)
