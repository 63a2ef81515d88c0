"""A `Task` is whole, or cannot be made: a method left out would return None in the middle of a run."""

import pytest

from glocal.tasks import TASKS


@pytest.mark.parametrize("kind", TASKS.values())
@pytest.mark.parametrize(
    "method", ["loss", "evaluate_batch", "join", "score", "datasets", "for_data", "eval_set", "predict"]
)
def test_a_task_without_one_of_its_methods_cannot_be_made(kind, method):
    base = next(one for one in reversed(kind.__mro__) if method in vars(one))
    part = type("Part", (kind,), {method: vars(base)[method]})  # as if the task had not written it
    with pytest.raises(TypeError, match=f"abstract method '?{method}"):
        part(None)
