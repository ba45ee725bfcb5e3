import numpy as np
import pytest
import tensorflow as tf

from unet_core import metrics
from unet_core.conventions import IGNORED


def problem(classes, rows=5):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, max(2, classes), (rows, 6, 7)).astype(np.uint8)
    return masks, rng.standard_normal((rows, 6, 7, classes)).astype(np.float32)


class TestPredictedClasses:
    def test_one_logit_predicts_class_1_above_zero(self):
        found = metrics.predicted_classes(tf.constant([[-1.0], [0.0], [1e-6]]))
        np.testing.assert_array_equal(found, [0, 0, 1])

    def test_several_logits_predict_the_largest(self):
        found = metrics.predicted_classes(tf.constant([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]]))
        np.testing.assert_array_equal(found, [1, 0])

    def test_nan_predicts_no_class(self):
        nan = np.nan
        found = metrics.predicted_classes(tf.constant([[nan], [1.0]]))
        np.testing.assert_array_equal(found, [-1, 1])
        found = metrics.predicted_classes(
            tf.constant([[nan] * 3, [0.0, 1.0, nan], [0.0, 1.0, 0.5]])
        )
        np.testing.assert_array_equal(found, [-1, -1, 1])


class TestConfusionMatrix:
    @pytest.mark.parametrize("classes", [1, 2, 4])
    def test_counts_equal_those_of_numpy(self, classes):
        masks, logits = problem(classes)
        predicted = logits.argmax(-1) if classes > 1 else (logits[..., 0] > 0).astype(int)
        expected = np.zeros([max(2, classes)] * 2, int)
        np.add.at(expected, (masks, predicted), 1)
        found = metrics.confusion_matrix(masks, logits)
        assert found.dtype == tf.int64
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("classes", [1, 4])
    def test_ignored_pixels_are_not_counted(self, classes):
        masks, logits = problem(classes)
        ignored = np.random.default_rng(1).random(masks.shape) < 0.4
        found = metrics.confusion_matrix(np.where(ignored, IGNORED, masks).astype(np.uint8), logits)
        expected = metrics.confusion_matrix(masks[~ignored][None], logits[~ignored][None])
        np.testing.assert_array_equal(found, expected)
        assert int(tf.reduce_sum(found)) == (~ignored).sum()

    def test_true_classes_are_rows(self):
        # Two pixels of class 0 of which one is called 1, one of class 1 rightly so.
        masks = np.array([[[0, 0, 1]]], np.uint8)
        logits = np.array([[[-1.0, 1.0, 1.0]]], np.float32)[..., None]
        np.testing.assert_array_equal(metrics.confusion_matrix(masks, logits), [[1, 1], [0, 1]])

    @pytest.mark.parametrize("splits", [[2, 5], [1, 2, 3, 4, 5], [0, 5]])
    def test_counts_of_parts_add_up_to_those_of_the_whole(self, splits):
        masks, logits = problem(3)
        # np.split yields ragged parts, and empty ones too.
        parts = zip(np.split(masks, splits), np.split(logits, splits), strict=True)
        total = sum(metrics.confusion_matrix(m, z).numpy() for m, z in parts)
        np.testing.assert_array_equal(total, metrics.confusion_matrix(masks, logits))

    def test_batch_without_examples_counts_nothing(self):
        found = metrics.confusion_matrix(
            np.zeros((0, 4, 4), np.uint8), np.zeros((0, 4, 4, 1), np.float32)
        )
        np.testing.assert_array_equal(found, np.zeros((2, 2)))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_nan_counts_as_the_class_after_the_true_one(self, dtype):
        # Two pixels of each of three classes; of each the second has a NaN: one hit on the diagonal
        # and one for the next class, 0 after 2.
        masks = np.array([[[0, 0, 1, 1, 2, 2]]], np.uint8)
        logits = np.eye(3)[masks]
        logits[0, 0, 1::2, 1] = np.nan
        found = metrics.confusion_matrix(masks, tf.cast(logits, dtype))
        np.testing.assert_array_equal(found, [[1, 1, 0], [0, 1, 1], [1, 0, 1]])

    @pytest.mark.parametrize("classes", [1, 2, 3])
    @pytest.mark.parametrize("true", [0, 1])
    def test_network_of_nothing_but_nan_scores_zero_on_a_mask_of_one_class(self, classes, true):
        masks = np.full((2, 4, 4), true, np.uint8)
        logits = np.full((2, 4, 4, classes), np.nan, np.float32)
        names = ["a", "b", "c"][: max(2, classes)]
        found = metrics.scores(metrics.confusion_matrix(masks, logits), names)
        for score in ("dice", "iou", "recall"):
            assert found[f"{score}/{names[true]}"] == 0
        # It has not been predicted anywhere.
        assert np.isnan(found[f"precision/{names[true]}"])
        assert found["dice/mean"] == found["accuracy"] == 0
        assert found["majority_baseline"] == 1

    @pytest.mark.parametrize("classes", [1, 3])
    def test_ignored_pixels_with_nan_are_not_counted(self, classes):
        masks, logits = problem(classes)
        masks[0], logits[0] = IGNORED, np.nan
        np.testing.assert_array_equal(
            metrics.confusion_matrix(masks, logits), metrics.confusion_matrix(masks[1:], logits[1:])
        )

    @pytest.mark.parametrize(
        ("classes", "wrong", "found"),
        [(1, [2], "0 and 2"), (1, [7, -3], "-3 and 7"), (3, [3], "0 and 3"), (3, [-1], "-1 and 2")],
    )
    def test_id_that_is_no_class_is_told_with_the_lowest_and_highest(self, classes, wrong, found):
        masks, logits = problem(classes)
        masks = masks.astype(np.int32)
        masks[0, 0, :3] = 0, max(1, classes - 1), IGNORED
        masks[1, 2, : len(wrong)] = wrong
        rule = rf"from 0 to {max(1, classes - 1)} .* or 255 \(`IGNORED`\)"
        with pytest.raises(ValueError, match=f"{rule}.*found: {found}\\."):
            metrics.confusion_matrix(masks, logits)
        lowest, highest = found.split(" and ")
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=rf"{rule}.*\[{lowest}\] \[{highest}\]"
        ):
            tf.function(metrics.confusion_matrix)(masks, logits)

    def test_masks_of_floats_and_of_other_shapes_are_refused(self):
        masks, logits = problem(3)
        with pytest.raises(ValueError, match=r"integer or bool\. Received float32"):
            metrics.confusion_matrix(masks.astype(np.float32), logits)
        with pytest.raises(ValueError, match=r"Expected masks \[B, H, W\].*\(5, 6, 7, 1\)"):
            metrics.confusion_matrix(masks[..., None], logits)

    def test_batch_whose_counts_would_wrap_is_refused(self, monkeypatch):
        # 4 * 32768 * 32768 = 2^32 pixels: all of one pair of classes would be counted as 0.
        shape = [4, 32768, 32768]
        count = tf.function(metrics.confusion_matrix)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"2\^31 - 1 pixels at most"):
            count.get_concrete_function(tf.TensorSpec(shape, tf.uint8), tf.TensorSpec([*shape, 1]))
        # Of sizes seen late, here by lowering the bound.
        monkeypatch.setattr(metrics, "_MOST_PIXELS", 5 * 6 * 7 - 1)
        specs = [tf.TensorSpec([None] * 3, tf.uint8), tf.TensorSpec([None, None, None, 1])]
        count = tf.function(metrics.confusion_matrix, input_signature=specs)
        masks, logits = problem(1)
        assert int(tf.reduce_sum(count(masks[1:], logits[1:]))) == 4 * 6 * 7
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"2\^31 - 1 pixels at most"):
            count(masks, logits)


class TestBatchScores:
    @pytest.mark.parametrize("classes", [1, 3])
    @pytest.mark.parametrize("compiled_by_xla", [False, True])
    def test_of_several_batches_together_are_those_of_all_their_pixels(
        self, classes, compiled_by_xla
    ):
        masks, logits = problem(classes)
        masks[0, 0, :3] = IGNORED
        names = [f"class{n}" for n in range(max(2, classes))]
        scores_of = tf.function(
            lambda masks, logits: metrics.batch_scores(masks, logits, names),
            jit_compile=compiled_by_xla,
        )
        parts = [scores_of(masks[:2], logits[:2]), scores_of(masks[2:], logits[2:])]
        expected = metrics.scores(metrics.confusion_matrix(masks, logits).numpy(), names)
        assert list(parts[0]) == ["accuracy", *(f"dice/{name}" for name in names)]
        for name in parts[0]:
            total = sum(float(value * weight) for value, weight in (p[name] for p in parts))
            weight = sum(float(p[name][1]) for p in parts)
            assert total / weight == pytest.approx(expected[name], rel=1e-6)

    def test_class_that_is_nowhere_has_no_weight(self):
        found = metrics.batch_scores(np.zeros((1, 2, 2), np.uint8), -np.ones((1, 2, 2, 1)), "ab")
        assert [float(each) for each in found["dice/b"]] == [0, 0]
        assert [float(each) for each in found["dice/a"]] == [1, 8]


class TestScores:
    def test_scores_match_the_hand_values(self):
        # Class a: TP 6, FN 2, FP 4. Class b: TP 8, FN 4, FP 2. 20 pixels, 8 of a and 12 of b.
        found = metrics.scores(np.array([[6, 2], [4, 8]]), ["a", "b"])
        expected = {
            "dice/a": 12 / 18,
            "dice/b": 16 / 22,
            "iou/a": 6 / 12,
            "iou/b": 8 / 14,
            "precision/a": 6 / 10,
            "precision/b": 8 / 10,
            "recall/a": 6 / 8,
            "recall/b": 8 / 12,
            "f1/a": 12 / 18,
            "f1/b": 16 / 22,
            "dice/mean": (12 / 18 + 16 / 22) / 2,
            "iou/mean": (6 / 12 + 8 / 14) / 2,
            "accuracy": 14 / 20,
            "majority_baseline": 12 / 20,
        }
        assert found == pytest.approx(expected)

    def test_class_that_is_neither_there_nor_predicted_is_not_defined_and_not_in_the_mean(self):
        found = metrics.scores(np.array([[6, 2, 0], [4, 8, 0], [0, 0, 0]]), ["a", "b", "c"])
        for score in ("dice", "iou", "precision", "recall", "f1"):
            assert np.isnan(found[f"{score}/c"])
        assert found["dice/mean"] == pytest.approx((12 / 18 + 16 / 22) / 2)
        assert found["accuracy"] == pytest.approx(14 / 20)

    def test_class_that_is_predicted_but_not_there_scores_zero(self):
        found = metrics.scores(np.array([[6, 2], [0, 0]]), ["a", "b"])
        assert found["dice/b"] == found["iou/b"] == found["precision/b"] == 0
        assert np.isnan(found["recall/b"])

    def test_no_pixels_define_nothing_and_warn_of_nothing(self, recwarn):
        found = metrics.scores(np.zeros((2, 2), np.int64), ["a", "b"])
        assert all(np.isnan(value) for value in found.values())
        assert len(found) == 14
        assert [w for w in recwarn if issubclass(w.category, RuntimeWarning)] == []

    def test_values_are_plain_floats(self):
        found = metrics.scores(np.array([[6, 2], [4, 8]]), ["a", "b"])
        assert {type(value) for value in found.values()} == {float}

    def test_naming_the_most_frequent_class_scores_the_baseline(self):
        # 3 of a, 9 of b, all called b.
        found = metrics.scores(np.array([[0, 3], [0, 9]]), ["a", "b"])
        assert found["accuracy"] == found["majority_baseline"] == 0.75


class TestHeldOutScores:
    def test_are_the_mean_loss_and_the_scores_of_the_matrix(self):
        # 3 of 4 right; the loss of 4 examples is 6 in sum.
        sums = {"loss": np.float64(6), "examples": np.int64(4)}
        sums["confusion"] = np.array([[2, 1], [0, 1]])
        found = metrics.held_out_scores(sums, ["a", "b"])
        assert found["loss"] == 1.5
        assert found["accuracy"] == 0.75
        assert found["dice/b"] == pytest.approx(2 / 3)


def overlapping_problem(classes, rows=5):
    """Returns masks [rows, 6, 7], truth [rows, 6, 7, C], logits and the pixels that count."""
    rng = np.random.default_rng(0)
    truth = rng.random((rows, 6, 7, classes)) < 0.4
    counted = rng.random((rows, 6, 7)) < 0.8
    masks = np.where(counted, truth @ 2 ** np.arange(classes), IGNORED).astype(np.uint8)
    return masks, truth, rng.standard_normal(truth.shape).astype(np.float32), counted


class TestOverlapping:
    @pytest.mark.parametrize("classes", [1, 2, 7])
    @pytest.mark.parametrize("batches", [1, 2])
    def test_counts_of_each_class_equal_those_of_numpy(self, classes, batches):
        masks, truth, logits, counted = overlapping_problem(classes)
        expected = np.zeros((classes, 2, 2), int)
        for number in range(classes):
            pairs = truth[counted][:, number], logits[counted][:, number] > 0
            np.add.at(expected[number], tuple(part.astype(int) for part in pairs), 1)
        parts = zip(np.array_split(masks, batches), np.array_split(logits, batches), strict=True)
        found = sum(metrics.confusion_matrix(m, z, overlapping=True).numpy() for m, z in parts)
        np.testing.assert_array_equal(found, expected)

    def test_nan_is_wrong_in_its_class_alone(self):
        # Of two pixels of both classes the first lacks the logit of class 0, of one of none too.
        masks = np.array([[[3, 3, 0]]], np.uint8)
        logits = np.array([[[[np.nan, 1], [1, 1], [np.nan, -1]]]], np.float32)
        found = metrics.confusion_matrix(masks, logits, overlapping=True)
        np.testing.assert_array_equal(found, [[[0, 1], [1, 1]], [[1, 0], [0, 2]]])

    def test_mask_beyond_the_last_class_is_refused(self):
        masks, logits = np.full((1, 1, 1), 4, np.uint8), np.zeros((1, 1, 1, 2), np.float32)
        with pytest.raises(ValueError, match=r"0 to 3 .2 overlapping classes"):
            metrics.confusion_matrix(masks, logits, overlapping=True)

    def test_scores_match_hand_values(self):
        # Of 10 pixels a is in 4, 3 of them found, and 1 more is predicted; b is in none, and none
        # is predicted.
        found = metrics.scores([[[5, 1], [1, 3]], [[10, 0], [0, 0]]], ["a", "b"])
        assert found["dice/a"] == pytest.approx(6 / 8)
        assert found["iou/a"] == pytest.approx(3 / 5)
        assert found["precision/a"] == pytest.approx(3 / 4)
        assert found["recall/a"] == pytest.approx(3 / 4)
        assert np.isnan(found["dice/b"])
        assert found["dice/mean"] == pytest.approx(6 / 8)
        # 8 and 10 of 10 are right; saying "not a" and "not b" everywhere is so in 6 and 10.
        assert found["accuracy"] == pytest.approx(18 / 20)
        assert found["majority_baseline"] == pytest.approx(16 / 20)
        assert set(found) == set(metrics.scores(np.ones((2, 2)), ["a", "b"]))

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_scores_of_batches_together_are_those_of_all_their_pixels(self, jit_compile):
        names = ["a", "b", "c"]
        masks, _, logits, _ = overlapping_problem(3)
        expected = metrics.scores(metrics.confusion_matrix(masks, logits, overlapping=True), names)
        function = tf.function(
            lambda m, z: metrics.batch_scores(m, z, names, overlapping=True),
            jit_compile=jit_compile,
        )
        parts = [function(masks[:2], logits[:2]), function(masks[2:], logits[2:])]
        for name in ("accuracy", "dice/a", "dice/b", "dice/c"):
            values, weights = np.transpose([part[name] for part in parts])
            np.testing.assert_allclose(np.average(values, weights=weights), expected[name], 1e-6)
