"""One batch learned by heart, and what is said if it is not."""

import pytest
from helpers.program import TINY, check_refused, write_slices


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


def run(door, slices, tmp_path, *args):
    where = f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}"
    result = door("--mode=overfit", *where, *TINY, *args)
    assert not (tmp_path / "run").exists()
    return result


def test_batch_is_learned_by_heart_although_the_recipe_has_dropout(door, slices, tmp_path):
    code, out, _ = run(
        door, slices, tmp_path, "--base_filters=12", "--learning_rate=1e-2", "--dropout=0.5"
    )
    assert code == 0
    assert "learned by heart: mean Dice 0.99" in out


def test_loss_that_does_not_fall_is_named(door, slices, tmp_path):
    result = run(door, slices, tmp_path, "--learning_rate=1e-9", "--overfit_steps=3")
    check_refused(result, "in 3 steps", "The loss has not fallen", "--learning_rate")


def test_run_that_is_there_with_other_settings_does_not_matter(door, slices, tmp_path):
    where = f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}"
    assert door(*where, *TINY, "--train_steps=2", "--dropout=0.5")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    result = door("--mode=overfit", *where, *TINY, "--seed=5", "--overfit_steps=2")
    check_refused(result, "in 2 steps")
    assert sorted(tmp_path.rglob("*")) == before
