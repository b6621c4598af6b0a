"""The plan of a run: what its state holds."""

import jax
from conftest import planned


def test_optimizer_state_is_that_of_the_trained_share(adapted):
    _, file = adapted
    _, _, _, plan = planned(file)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.shape)  # noqa: E731
    assert size(plan.abstract["opt"]) == 2 * size(plan.abstract["params"])
    assert size(plan.abstract["params"]) < 0.4 * size(plan.layout.shapes)
