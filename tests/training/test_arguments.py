"""How the learning rate goes over the updates."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer

from engine.training.arguments import UpdatesRecipe, training_arguments


def rates(tmp_path, **options) -> list[float]:
    """The learning rate of each update."""
    arguments = training_arguments(tmp_path, "cpu", **UpdatesRecipe(learning_rate=1.0, **options).schedule)
    assert arguments.max_steps == options["num_updates"]
    model = torch.nn.Linear(1, 1)
    trainer = Trainer(model=model, args=arguments)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = trainer.create_scheduler(arguments.max_steps, optimizer)
    found = []
    for _ in range(options["num_updates"]):
        found += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return found


def test_the_learning_rate_rises_stays_and_falls_to_a_hundredth(tmp_path):
    found = rates(tmp_path, num_updates=100, warmup=10, decay=0.3)
    assert found[:11] == pytest.approx([0.01 + 0.099 * update for update in range(11)])
    assert found[10:71] == pytest.approx([1.0] * 61)
    assert found[70:] == pytest.approx([1 - 0.033 * update for update in range(30)])


@pytest.mark.parametrize(
    ("decay", "expected"),
    [(0.0, [0.01, 0.2575, 0.505, 0.7525]), (0.5, [0.01, 0.505, 1.0, 0.505]), (1.0, [1.0, 0.7525, 0.505, 0.2575])],
)
def test_the_warm_up_of_a_short_training_ends_before_the_decay(tmp_path, decay, expected):
    assert rates(tmp_path, num_updates=4, warmup=50, decay=decay) == pytest.approx(expected)
