"""The loop trains the weights that `model.fit` does, whatever the model and the optimizer.

By default each model and each optimizer is tried once. `-m exhaustive` tries all optimizers on the
models whose variables they treat in different ways, and two on each of the others, of whose
gradients an optimizer knows nothing.
`pytest -s` prints one line per comparison: what, largest deviation, bound.
"""

import numpy as np
import pytest
from training.foreign_models import OPTIMIZERS, PROBLEMS
from training.model_runs import (
    ROWS,
    by_loop,
    cell,
    check,
    dataset,
    deviation,
    make_optimizer,
    values,
)

FIT_BOUND = 1e-6
WITH_ALL_OPTIMIZERS = {"functional", "constraints", "batch_norm", "embedding", "frozen"}
WITH_ALL_MODELS = {"momentum", "adamw"}


def by_fit(problem, optimizer):
    """Returns all variables as Keras trains them, and how far each of the trainable ones went."""
    model = problem.make_reference()
    model(problem.make_batch(0, ROWS)[0])
    before = values(model.trainable_variables)
    model.compile(make_optimizer(optimizer, problem), jit_compile=False, **problem.compiled)
    model.fit(dataset(problem.make_batch), epochs=1, shuffle=False, verbose=0)
    after = values(model.trainable_variables)
    moved = [np.abs(a - b).max() for a, b in zip(after, before, strict=True)]
    return values(model.variables), moved


def fit_cells():
    for i, model in enumerate(PROBLEMS):
        for j, optimizer in enumerate(OPTIMIZERS):
            # A diagonal; there is one optimizer less.
            fast = i % len(OPTIMIZERS) == j
            if fast or model in WITH_ALL_OPTIMIZERS or optimizer in WITH_ALL_MODELS:
                yield cell(model, optimizer, fast=fast)


class TestAgainstFit:
    @pytest.mark.parametrize(("model", "optimizer"), list(fit_cells()))
    def test_trains_the_weights_that_keras_does(self, model, optimizer):
        problem = PROBLEMS[model]
        expected, moved = by_fit(problem, optimizer)
        found = by_loop(problem, optimizer)
        check(f"{model}-{optimizer}", deviation(found, expected), FIT_BOUND)
        assert min(moved) > 100 * FIT_BOUND


class TestFrozen:
    @pytest.mark.parametrize("optimizer", [cell(o, fast=o == "adamw") for o in OPTIMIZERS])
    def test_variables_keep_their_bits_though_the_others_decay(self, optimizer):
        problem = PROBLEMS["frozen"]
        model = problem.make()
        before = dict(zip((v.path for v in model.variables), values(model.variables), strict=True))
        found = by_loop(problem, optimizer)
        trained = {variable.path for variable in model.trainable_variables}
        assert 0 < len(trained) < len(before)
        for (path, value), (copy,) in zip(before.items(), found, strict=True):
            assert np.array_equal(copy, value) == (path not in trained), path
