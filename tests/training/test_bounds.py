"""Values of a recipe that training cannot use are refused in a sentence, before anything is trained."""

import pytest

from engine import Engine
from engine.errors import UserError
from engine.training.arguments import read_tokenizer, training_arguments
from engine.training.policy import PolicyRecipe
from engine.training.prm import PRMRecipe
from engine.training.revision import RevisionRecipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: PRMRecipe(dropout=2), r"dropout must be within \[0, 1\], got 2"),
        (lambda path: PolicyRecipe(num_updates=0), "num_updates must be at least 1, got 0"),
        (lambda path: PolicyRecipe(tokens_per_step=0), "tokens_per_step must be at least 1, got 0"),
        (lambda path: PolicyRecipe(late_from=1.5), r"late_from must be within 0\.\.1, got 1\.5"),
        (
            lambda path: PolicyRecipe(late_lengths="2,much"),
            "late_lengths are the short_lengths of late updates: .*needs numbers with commas between, got '2,much'",
        ),
        (lambda path: PolicyRecipe(decay=1.5), "decay must be within 0..1, got 1.5"),
        (lambda path: PolicyRecipe(learning_rate=float("nan")), "learning_rate must be a number over 0, got nan"),
        (lambda path: PRMRecipe(learning_rate=0.0), "learning_rate must be a number over 0, got 0.0"),
        (lambda path: RevisionRecipe(learning_rate=-1e-3), "learning_rate must be a number over 0, got -0.001"),
        (lambda path: PRMRecipe(num_updates=0), "num_updates must be at least 1, got 0"),
        (lambda path: PRMRecipe(tokens_per_step=0), "tokens_per_step must be at least 1, got 0"),
        (lambda path: PRMRecipe(warmup=-1), "warmup must be at least 0, got -1"),
        (lambda path: RevisionRecipe(decay=-0.1), "decay must be within 0..1, got -0.1"),
        (
            lambda path: training_arguments(path, "cpu", -1, 1e-3, num_updates=1),
            "seed must be within 0..4294967295, got -1",
        ),
        (lambda path: PolicyRecipe(seed=1 << 32), "seed must be within 0..4294967295, got 4294967296"),
        (lambda path: PRMRecipe(seed=1 << 70), "seed must be within 0..4294967295, got 1180591620717411303424"),
        (lambda path: RevisionRecipe(seed=-1), "seed must be within 0..4294967295, got -1"),
        (lambda path: read_tokenizer(path), "the tokenizer of .* cannot be read"),
        (lambda path: Engine.load(max_batch=10**18), "max_batch must be at most 65536, got 10{18}"),
    ],
)
def test_refused(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path)
