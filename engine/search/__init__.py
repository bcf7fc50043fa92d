"""Searches over the answers of a policy, against a verifier."""

from engine.keys import branch_key
from engine.search.adaptive import Adaptive
from engine.search.arguments import MAX_BUDGET, check_arguments, sampler
from engine.search.beam import BeamSearch
from engine.search.best_of_n import BestOfN, Majority
from engine.search.dvts import DVTS
from engine.search.lookahead import Lookahead
from engine.search.loop import run_search
from engine.search.protocols import Attempt, Policy, PolicyBranch, Strategy, Verifier, VerifierBranch
from engine.search.rebase import Rebase
from engine.search.revisions import Revisions
from engine.search.vote import REVISION_VOTES, VOTES, merge_equal, vote

__all__ = [
    "DVTS",
    "MAX_BUDGET",
    "REVISION_VOTES",
    "VOTES",
    "Adaptive",
    "Attempt",
    "BeamSearch",
    "BestOfN",
    "Lookahead",
    "Majority",
    "Policy",
    "PolicyBranch",
    "Rebase",
    "Revisions",
    "Strategy",
    "Verifier",
    "VerifierBranch",
    "branch_key",
    "check_arguments",
    "merge_equal",
    "run_search",
    "sampler",
    "vote",
]
