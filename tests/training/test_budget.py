import pytest

from glocal.errors import GlocalError
from glocal.training.budget import Budget, training_flop


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("5ep", 5, "ep"), ("0.5ep", 0.5, "ep"), ("90s", 90, "s"), ("2e14flop", 2e14, "flop"), (" 3 EP ", 3, "ep")],
)
def test_a_budget_is_an_amount_and_a_unit(text, amount, unit):
    budget = Budget.parse(text)
    assert (budget.amount, budget.unit) == (amount, unit)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "5", "ep", "-1ep", "0s", "5 epochs", "nanep", "infs", "1e999flop", "5ep 3s"])
def test_nonsense_is_answered_with_examples(text):
    with pytest.raises(GlocalError, match="such as 5ep"):
        Budget.parse(text)


def test_steps_by_hand():
    assert Budget(5, "ep").steps(num_images=1000, steps_per_epoch=16, macs=1) == 80
    assert Budget(0.5, "ep").steps(num_images=1000, steps_per_epoch=16, macs=1) == 8
    assert Budget(0.001, "ep").steps(num_images=1000, steps_per_epoch=16, macs=1) == 1
    # 100 MACs an image: 600 FLOP to train on it, 600,000 for an epoch of 1,000
    assert training_flop(100) == 600
    assert Budget(1.2e6, "flop").steps(num_images=1000, steps_per_epoch=16, macs=100) == 32
    assert Budget(90, "s").steps(num_images=1000, steps_per_epoch=16, macs=1) is None
