import hashlib
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_loop, run, weights

from unet_core import temporary, training
from unet_core.errors import UserError
from unet_core.models.build import make_network
from unet_core.training import schedules


def adamw():
    return keras.optimizers.AdamW(0.01, weight_decay=0.1)


def everything(loop):
    """All that a checkpoint must hold, as one list of arrays."""
    variables = [*loop.model.variables, *loop.optimizer.variables, *loop.state.values()]
    return [np.asarray(variable.numpy()) for variable in variables]


def save_steps(directory, *steps, keep=3, scores=None, **kwargs):
    loop = make_loop(optimizer=adamw)
    checkpoints = training.Checkpoints(directory, loop, keep=keep, **kwargs)
    for step in steps:
        run(loop, batches, step)
        checkpoints.save(score=(scores or {}).get(step))
    return loop, checkpoints


class TestResume:
    def test_resumed_run_ends_like_the_uninterrupted_one_bit_for_bit(self, tmp_path):
        def make():
            return make_loop(
                optimizer=adamw, schedule=schedules.cosine(0.01, total_steps=20, warmup_steps=3)
            )

        whole = make()
        expected = list(whole.train(batches, until_step=20, report_every_steps=4))
        first = make()
        list(first.train(batches, until_step=10, report_every_steps=4))
        training.Checkpoints(tmp_path, first).save()
        second = make()
        assert training.Checkpoints(tmp_path, second).restore() == 10
        found = list(second.train(batches, until_step=20, report_every_steps=4))
        for a, b in zip(everything(second), everything(whole), strict=True):
            np.testing.assert_array_equal(a, b)
        # The window of step 12 began before the interruption.
        assert [(r.step, r.loss) for r in found] == [(r.step, r.loss) for r in expected[2:]]

    def test_save_made_inside_the_loop_body_resumes_with_an_empty_window(self, tmp_path):
        whole, first, second = make_loop(), make_loop(), make_loop()
        expected = list(whole.train(batches, until_step=8, report_every_steps=4))
        for _ in first.train(batches, until_step=4, report_every_steps=4):
            training.Checkpoints(tmp_path, first).save()
        training.Checkpoints(tmp_path, second).restore()
        found = list(second.train(batches, until_step=8, report_every_steps=4))
        assert found[0].loss == expected[1].loss

    def test_dropout_repeats_its_masks_after_a_restore(self, tmp_path):
        def make():
            model = make_network(
                classes=2, depth=1, base_filters=2, dropout=0.5, normalization="batch"
            )
            return training.Loop(
                model,
                keras.optimizers.SGD(0.1),
                loss=lambda logits, batch: tf.reduce_mean(tf.square(logits), (1, 2, 3)),
            )

        images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)

        def dataset(start_step, context):
            return tf.data.Dataset.from_tensors((images,)).repeat()

        whole = make()
        run(whole, dataset, 6)
        first = make()
        run(first, dataset, 3)
        training.Checkpoints(tmp_path, first).save()
        second = make()
        training.Checkpoints(tmp_path, second).restore()
        run(second, dataset, 6)
        np.testing.assert_array_equal(weights(second), weights(whole))

    @pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 2), (2, 1), (2, 4)])
    def test_other_replica_count_restores_all_values_exactly(
        self, tmp_path, mirrored, saved_on, restored_on
    ):
        first = make_loop(mirrored(saved_on), optimizer=adamw)
        run(first, batches, 5)
        training.Checkpoints(tmp_path, first).save()
        second = make_loop(mirrored(restored_on), optimizer=adamw)
        training.Checkpoints(tmp_path, second).restore()
        for a, b in zip(everything(second), everything(first), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_empty_folder_restores_step_0(self, tmp_path):
        assert training.Checkpoints(tmp_path / "none", make_loop()).restore() == 0
        assert not (tmp_path / "none").exists()


class TestKeeping:
    def test_latest_and_best_are_kept_and_the_rest_pruned(self, tmp_path):
        scores = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.6, 5: 0.7}
        _, checkpoints = save_steps(tmp_path, 1, 2, 3, 4, 5, keep=2, scores=scores)
        assert checkpoints.steps() == [2, 4, 5]
        assert (checkpoints.best_step, checkpoints.best_score) == (2, 0.9)

    def test_lowest_is_best_when_asked_for(self, tmp_path):
        scores = {1: 0.2, 2: 0.9, 3: 0.5}
        _, checkpoints = save_steps(tmp_path, 1, 2, 3, scores=scores, higher_is_better=False)
        assert checkpoints.best_step == 1

    def test_best_is_remembered_over_a_restart(self, tmp_path):
        save_steps(tmp_path, 1, 2, 3, keep=1, scores={1: 0.9, 2: 0.1})
        checkpoints = training.Checkpoints(tmp_path, make_loop(optimizer=adamw), keep=1)
        checkpoints.restore()
        assert (checkpoints.best_step, checkpoints.best_score) == (1, 0.9)
        assert checkpoints.steps() == [1, 3]

    def test_nan_is_never_the_best(self, tmp_path):
        _, checkpoints = save_steps(tmp_path, 1, 2, scores={1: float("nan"), 2: 0.1})
        assert checkpoints.best_step == 2

    def test_pruning_leaves_files_of_others_alone(self, tmp_path):
        loop, checkpoints = save_steps(tmp_path, 1, keep=1)
        note = tmp_path / "step-00000001" / "my_note.txt"
        note.write_text("mine")
        run(loop, batches, 2)
        checkpoints.save()
        assert note.read_text() == "mine"
        assert [p.name for p in note.parent.iterdir()] == ["my_note.txt"]

    def test_metadata_is_stored(self, tmp_path):
        save_steps(tmp_path, 1, metadata={"classes": "0:a,1:b"})
        manifest = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())
        assert manifest["metadata"] == {"classes": "0:a,1:b"}


def half_written(directory):
    """Makes what a save leaves whose process is killed."""
    new = temporary.NewFolder(directory / "step-00000009")
    (new.path / "state.data-00000-of-00001").write_bytes(b"half")
    (new.path / "state_temp").mkdir()
    (new.path / "state_temp" / "part").write_bytes(b"left by TensorFlow")
    os.close(new._lock)
    # This process has looked for what others left before there was any.
    temporary._swept.clear()
    return new.path


class TestDamage:
    def test_half_written_save_is_passed_over(self, tmp_path):
        save_steps(tmp_path, 1)
        partial = half_written(tmp_path)
        checkpoints = training.Checkpoints(tmp_path, make_loop(optimizer=adamw))
        assert checkpoints.unfinished() == [partial]
        assert checkpoints.restore() == 1
        assert checkpoints.unfinished() == []
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]

    def test_next_save_removes_the_half_written_one(self, tmp_path):
        half_written(tmp_path)
        _, checkpoints = save_steps(tmp_path, 2)
        assert checkpoints.steps() == [2]
        assert checkpoints.unfinished() == []

    @pytest.mark.parametrize("file", ["state.index", "state.data-00000-of-00001", "manifest.json"])
    @pytest.mark.parametrize("how", ["cut", "gone"])
    def test_truncated_checkpoint_names_the_one_before_it(self, tmp_path, file, how):
        save_steps(tmp_path, 1, 2)
        path = tmp_path / "step-00000002" / file
        content = path.read_bytes()
        path.unlink()
        if how == "cut":
            path.write_bytes(content[: len(content) // 2])
        loop = make_loop(optimizer=adamw)
        before = everything(loop)
        with pytest.raises(UserError, match=r"step-00000002.*damaged.*step-00000001"):
            training.Checkpoints(tmp_path, loop).restore()
        for a, b in zip(everything(loop), before, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_flipped_byte_is_found(self, tmp_path):
        save_steps(tmp_path, 1)
        path = tmp_path / "step-00000001" / "state.data-00000-of-00001"
        content = bytearray(path.read_bytes())
        content[10] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match="has changed"):
            training.Checkpoints(tmp_path, make_loop(optimizer=adamw)).restore()

    def test_checkpoint_of_another_network_names_what_differs(self, tmp_path):
        save_steps(tmp_path, 1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
        loop = training.Loop(model, adamw(), loss=lambda outputs, batch: outputs[:, 0])
        with pytest.raises(UserError, match=r"another network.*\[3, 1\].*\[3, 2\]"):
            training.Checkpoints(tmp_path, loop).restore()

    def test_checkpoint_without_optimizer_slots_does_not_pass(self, tmp_path):
        loop = make_loop()
        run(loop, batches, 1)
        training.Checkpoints(tmp_path, loop).save()
        with pytest.raises(UserError, match="optimizer"):
            training.Checkpoints(tmp_path, make_loop(optimizer=adamw)).restore()

    def test_full_disk_is_one_message_and_leaves_earlier_checkpoints(self, tmp_path, monkeypatch):
        loop, checkpoints = save_steps(tmp_path, 1)
        run(loop, batches, 2)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("unet_core.files.flush", full)
        with pytest.raises(UserError, match=r"No space left.*step 1 is whole"):
            checkpoints.save()
        assert checkpoints.steps() == [1]


class TestOwners:
    def change(self, directory, change):
        """Writes the checkpoint of step 1 with other owners, and a manifest that agrees."""
        folder = directory / "step-00000001"
        loop = make_loop(optimizer=adamw)
        checkpoints = training.Checkpoints(directory, loop)
        checkpoints.restore()
        state = checkpoints._state()
        owners = {n: getattr(state, n) for n in ("parts", "teachers", "loop", "also")}
        change(owners)
        tf.train.Checkpoint(**owners).write(str(folder / "state"))
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"bytes": len(content), "sha256": digest}
        path.write_text(json.dumps(manifest | {"added_later": 1}))

    def test_owner_of_a_later_version_is_named_and_left_out(self, tmp_path):
        loop, _ = save_steps(tmp_path, 1)
        later = tf.train.Checkpoint(patience=tf.Variable(3), best=tf.Variable([1.0, 2.0]))
        self.change(tmp_path, lambda owners: owners.update(controls=later))
        found = make_loop(optimizer=adamw)
        with pytest.warns(UserWarning, match="step-00000001 holds the state of controls, which"):
            assert training.Checkpoints(tmp_path, found).restore() == 1
        for a, b in zip(everything(found), everything(loop), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_owner_that_the_checkpoint_lacks_is_named_and_nothing_is_restored(self, tmp_path):
        save_steps(tmp_path, 1)
        self.change(tmp_path, lambda owners: owners.pop("loop"))
        found = make_loop(optimizer=adamw)
        before = everything(found)
        with pytest.raises(UserError, match="has no state of loop, which the loop has"):
            training.Checkpoints(tmp_path, found).restore()
        for a, b in zip(everything(found), before, strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize("added", [1, -1])
    def test_more_or_fewer_variables_of_an_owner_are_refused(self, tmp_path, added):
        save_steps(tmp_path, 1)

        def change(owners):
            state = dict(make_loop().state)
            state.pop("skipped_steps")
            more = {"new": tf.Variable(1), "newer": tf.Variable(1)} if added > 0 else {}
            owners["loop"] = tf.train.Checkpoint(**state, **more)

        self.change(tmp_path, change)
        loop = make_loop(optimizer=adamw)
        with pytest.raises(UserError, match="does not fit the loop it is restored into"):
            training.Checkpoints(tmp_path, loop).restore()

    def test_what_a_later_version_added_to_the_manifest_stays(self, tmp_path):
        save_steps(tmp_path, 1)
        self.change(tmp_path, lambda owners: None)
        checkpoints = training.Checkpoints(tmp_path, make_loop(optimizer=adamw))
        checkpoints.restore()
        checkpoints.save(score=0.5)
        manifest = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())
        assert (manifest["score"], manifest["added_later"]) == (0.5, 1)

    def test_newer_format_is_refused_by_its_number(self, tmp_path):
        save_steps(tmp_path, 1)
        path = tmp_path / "step-00000001" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
        with pytest.raises(UserError, match="has format 3, and this version reads format 2"):
            training.Checkpoints(tmp_path, make_loop(optimizer=adamw)).restore()

    def test_score_that_is_no_number_is_saved_and_restored(self, tmp_path):
        save_steps(tmp_path, 1, scores={1: float("nan")})
        checkpoints = training.Checkpoints(tmp_path, make_loop(optimizer=adamw))
        assert checkpoints.restore() == 1
        assert checkpoints.best_step is None


class TestLoadWeights:
    def test_best_and_last(self, tmp_path):
        loop = make_loop(optimizer=adamw)
        checkpoints = training.Checkpoints(tmp_path, loop)
        kept = {}
        for step, score in ((1, 0.9), (2, 0.1)):
            run(loop, batches, step)
            checkpoints.save(score=score)
            kept[step] = weights(loop)
        model = make_loop().model
        assert training.load_weights(tmp_path, model) == 2
        np.testing.assert_array_equal(model.get_weights()[0].ravel(), kept[2])
        assert training.load_weights(tmp_path, model, best=True) == 1
        np.testing.assert_array_equal(model.get_weights()[0].ravel(), kept[1])

    def test_folder_without_checkpoint_says_so(self, tmp_path):
        with pytest.raises(UserError, match="no checkpoint"):
            training.load_weights(tmp_path, make_loop().model)
