"""Searches over the answers of a policy, against a verifier."""

from engine.config import MAX_BUDGET
from engine.keys import branch_key
from engine.search.adaptive import Adaptive
from engine.search.aggregate import AGG_STRATEGIES, aggregate, check_agg_strategy
from engine.search.answers import Answers, is_correct
from engine.search.arguments import check_arguments
from engine.search.beam import BeamSearch
from engine.search.best_of_n import BestOfN, Majority
from engine.search.dvts import DVTS
from engine.search.lookahead import Lookahead
from engine.search.loop import run_search
from engine.search.protocols import Models, Policy, PolicyBranch, Strategy
from engine.search.rebase import Rebase
from engine.search.revisions import Revisions
from engine.search.vote import REVISION_VOTES, VOTES, merge_equal, vote
from engine.search.watch import UNWATCHED, SearchEvent, Watch
from engine.types import Attempt
from engine.verifiers.base import Verifier, VerifierBranch

__all__ = [
    "AGG_STRATEGIES",
    "DVTS",
    "MAX_BUDGET",
    "REVISION_VOTES",
    "UNWATCHED",
    "VOTES",
    "Adaptive",
    "Answers",
    "Attempt",
    "BeamSearch",
    "BestOfN",
    "Lookahead",
    "Majority",
    "Models",
    "Policy",
    "PolicyBranch",
    "Rebase",
    "Revisions",
    "SearchEvent",
    "Strategy",
    "Verifier",
    "VerifierBranch",
    "Watch",
    "aggregate",
    "branch_key",
    "check_agg_strategy",
    "check_arguments",
    "is_correct",
    "merge_equal",
    "run_search",
    "vote",
]
