import functools

import numpy as np
import pytest
import tensorflow as tf

from unet_core import losses
from unet_core.conventions import IGNORED
from unet_core.errors import UserError

LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "focal": losses.focal,
    "tversky": losses.tversky,
    "soft_dice": losses.soft_dice,
    "batch_tversky": functools.partial(losses.tversky, batchwise=True),
    "batch_dice": functools.partial(losses.soft_dice, batchwise=True),
}


def problem(classes=1, rows=4, seed=0):
    """Returns masks [rows, 5, 6] and logits [rows, 5, 6, classes]; rows differ in their shares."""
    rng = np.random.default_rng(seed)
    count = max(2, classes)
    masks = np.stack(
        [rng.choice(count, (5, 6), p=rng.dirichlet(np.ones(count))) for _ in range(rows)]
    )
    logits = 2 * rng.standard_normal((rows, 5, 6, classes))
    return masks.astype(np.uint8), logits.astype(np.float32)


def softmax(logits):
    """Returns probabilities [..., C] in float64; one logit stands for (0, logit)."""
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], -1)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def of_true_class(masks, logits):
    return np.take_along_axis(softmax(logits), masks[..., None].astype(int), -1)[..., 0]


def counts(masks, logits):
    """Returns soft TP, FP and FN, each [B, C]."""
    predicted = softmax(logits)
    truth = np.eye(predicted.shape[-1])[masks]
    hit = (predicted * truth).sum((1, 2))
    return hit, predicted.sum((1, 2)) - hit, truth.sum((1, 2)) - hit


class TestEveryLoss:
    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    @pytest.mark.parametrize("classes", [1, 3])
    def test_result_is_one_float32_per_example(self, name, dtype, classes):
        masks, logits = problem(classes)
        values = LOSSES[name](masks, tf.cast(logits, dtype))
        assert values.shape == (4,)
        assert values.dtype == tf.float32
        assert np.isfinite(values).all()

    @pytest.mark.parametrize("name", LOSSES)
    def test_one_logit_equals_two_of_which_the_first_is_zero(self, name):
        masks, logits = problem()
        pair = np.concatenate([np.zeros_like(logits), logits], -1)
        np.testing.assert_allclose(
            LOSSES[name](masks, logits), LOSSES[name](masks, pair), rtol=1e-5
        )

    @pytest.mark.parametrize("name", LOSSES)
    def test_large_float16_images_do_not_overflow(self, name):
        # 512 * 512 pixels are more than 65504, the largest float16.
        masks = np.zeros((1, 512, 512), np.uint8)
        masks[:, :256] = 1
        logits = tf.cast(np.where(masks, 3.0, -3.0)[..., None], tf.float16)
        (value,) = LOSSES[name](masks, logits).numpy()
        # A probability of 0.953 for every pixel's class: all losses are far below 1.
        assert 0 < value < 0.1

    @pytest.mark.parametrize("name", LOSSES)
    def test_perfect_prediction_of_an_empty_mask_is_near_zero_and_not_nan(self, name):
        masks = np.zeros((2, 8, 8), np.uint8)
        logits = np.full((2, 8, 8, 1), -30.0, np.float32)
        np.testing.assert_allclose(LOSSES[name](masks, logits), [0, 0], atol=1e-5)

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("logit", [50.0, -50.0])
    def test_gradients_at_extreme_logits_are_finite(self, name, logit):
        masks, _ = problem()
        logits = tf.fill([4, 5, 6, 1], logit)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = LOSSES[name](masks, logits)
        assert np.isfinite(values).all()
        assert np.isfinite(tape.gradient(values, logits)).all()

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 7, 1), (3, 5, 6, 1)])
    def test_shapes_that_do_not_fit_are_told(self, name, shape):
        masks, _ = problem()
        with pytest.raises(ValueError, match=r"Expected masks \[B, H, W\].*Received \(4, 5, 6\)"):
            LOSSES[name](masks, np.zeros(shape, np.float32))


class TestClassIds:
    """Two classes of one logit, or three; so 2 is a class only of the latter."""

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize(
        ("classes", "wrong", "found"),
        [(1, [2], "0 and 2"), (1, [7, -3], "-3 and 7"), (3, [3], "0 and 3"), (3, [-1], "-1 and 2")],
    )
    def test_id_that_is_no_class_is_told_with_the_lowest_and_highest(
        self, name, classes, wrong, found
    ):
        masks, logits = problem(classes)
        masks = masks.astype(np.int32)
        # Neither the 0s and highest classes that stay nor those ignored are what is wrong.
        masks[0, 0, :3] = 0, max(1, classes - 1), IGNORED
        masks[1, 2, : len(wrong)] = wrong
        rule = rf"from 0 to {max(1, classes - 1)} .* or 255 \(`IGNORED`\)"
        with pytest.raises(ValueError, match=f"{rule}.*found: {found}\\."):
            LOSSES[name](masks, logits)
        lowest, highest = found.split(" and ")
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=rf"{rule}.*\[{lowest}\] \[{highest}\]"
        ):
            tf.function(LOSSES[name])(masks, logits)

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("classes", [1, 3])
    def test_under_xla_loss_and_gradient_are_nan_if_and_only_if_an_id_is_wrong(self, name, classes):
        masks, logits = problem(classes)

        @tf.function(jit_compile=True)
        def value_and_gradient(masks, logits):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                values = LOSSES[name](masks, logits)
            return values, tape.gradient(values, logits)

        values, gradient = value_and_gradient(masks, logits)
        np.testing.assert_allclose(values, LOSSES[name](masks, logits), rtol=1e-5)
        assert np.isfinite(gradient).all()
        masks[1, 2, 3] = 3
        values, gradient = value_and_gradient(masks, logits)
        assert np.isnan(values).all()
        assert np.isnan(gradient).any()

    def test_id_of_64_bits_is_not_cut_to_a_class(self):
        masks, logits = problem()
        masks = masks.astype(np.int64)
        masks[0, 0, 0] = 2**32  # 0 in 32 bits.
        with pytest.raises(ValueError, match="found: 0 and 4294967296"):
            losses.cross_entropy(masks, logits)

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "uint16"])
    def test_masks_are_of_any_integer_type(self, name, dtype):
        masks, logits = problem()
        np.testing.assert_array_equal(
            LOSSES[name](masks.astype(dtype), logits), LOSSES[name](masks, logits)
        )

    @pytest.mark.parametrize("name", LOSSES)
    def test_soft_labels_are_refused_and_not_cut_to_class_0(self, name):
        masks, logits = problem()
        with pytest.raises(ValueError, match=r"integer or bool\. Received float32"):
            LOSSES[name]((0.7 * masks).astype(np.float32), logits)

    def test_batch_without_rows_has_no_wrong_id(self):
        masks, logits = problem()
        assert losses.cross_entropy(masks[:0], logits[:0]).shape == (0,)


class TestProbabilities:
    def test_one_logit_gives_two_classes(self):
        # sigmoid(ln 3) = 3/4.
        found = losses.probabilities(tf.constant([[np.log(3.0)]], tf.float32))
        np.testing.assert_allclose(found, [[0.25, 0.75]], rtol=1e-6)

    def test_several_logits_give_softmax_in_float32(self):
        _, logits = problem(3)
        found = losses.probabilities(tf.cast(logits, tf.bfloat16))
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found.numpy().sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(losses.probabilities(logits), softmax(logits), rtol=1e-5)


class TestCrossEntropy:
    def test_four_pixels_match_the_hand_value(self):
        # Probabilities of the true class: 3/4, 1/2, 1/4, 1/2; -ln of their product 3/64, by 4.
        masks = np.array([[[1, 0], [1, 1]]], np.uint8)
        logits = np.log(np.array([[[3, 1], [1 / 3, 1]]], np.float32))[..., None]
        expected = -np.log(3 / 64) / 4
        np.testing.assert_allclose(losses.cross_entropy(masks, logits), [expected], rtol=1e-6)

    @pytest.mark.parametrize("classes", [1, 2, 4])
    def test_value_equals_the_formula(self, classes):
        masks, logits = problem(classes)
        expected = -np.log(of_true_class(masks, logits)).mean((1, 2))
        np.testing.assert_allclose(losses.cross_entropy(masks, logits), expected, rtol=1e-5)

    @pytest.mark.parametrize("loss", [losses.cross_entropy, losses.focal])
    @pytest.mark.parametrize("classes", [1, 2])
    def test_class_weights_divide_by_the_pixels(self, loss, classes):
        masks, logits = problem(classes)
        # 4 f(class 0) + 1 f(class 1) over 30 pixels: the term of each class, got by weight 0 on
        # the other, adds up with its factor.
        only_0 = loss(masks, logits, class_weights=(1, 0))
        only_1 = loss(masks, logits, class_weights=(0, 1))
        np.testing.assert_allclose(only_0 + only_1, loss(masks, logits), rtol=1e-5)
        weighted = loss(masks, logits, class_weights=(4, 1))
        np.testing.assert_allclose(weighted, 4 * only_0 + only_1, rtol=1e-5)

    def test_twofold_weights_double_the_loss(self):
        masks, logits = problem(3)
        plain = losses.cross_entropy(masks, logits)
        doubled = losses.cross_entropy(masks, logits, class_weights=(2, 2, 2))
        np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6)
        doubled = losses.cross_entropy(masks, logits, pixel_weights=np.full(masks.shape, 2.0))
        np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6)

    @pytest.mark.parametrize("loss", [losses.cross_entropy, losses.focal])
    def test_pixel_weights_divide_by_the_pixels(self, loss):
        masks, logits = problem()
        weights = np.zeros(masks.shape)
        weights[:, 2, 3] = 15
        # One of 30 pixels with weight 15: half of its own term.
        of_pixel = loss(masks[:, 2:3, 3:4], logits[:, 2:3, 3:4])
        np.testing.assert_allclose(
            loss(masks, logits, pixel_weights=weights), of_pixel / 2, rtol=1e-5
        )

    @pytest.mark.parametrize("loss", [losses.cross_entropy, losses.focal])
    @pytest.mark.parametrize("shape", [(4, 5, 6, 1), (5, 6), (4,), (4, 1, 1), (1, 5, 6), ()])
    def test_pixel_weights_of_another_shape_are_refused_and_not_broadcast(self, loss, shape):
        masks, logits = problem()
        with pytest.raises(ValueError, match=r"`pixel_weights`.*\. Received \(.*masks \(4, 5, 6\)"):
            loss(masks, logits, pixel_weights=np.ones(shape, np.float32))

    @pytest.mark.parametrize("shape", [(4, 1, 1), (1, 5, 6)])
    def test_pixel_weights_of_a_shape_seen_late_are_refused_too(self, shape):
        masks, logits = problem()
        ids, of_pixels = (tf.TensorSpec([None] * 3, dtype) for dtype in (tf.uint8, tf.float32))
        loss = tf.function(
            lambda masks, logits, weights: losses.cross_entropy(
                masks, logits, pixel_weights=weights
            ),
            input_signature=[ids, tf.TensorSpec([None, None, None, 1]), of_pixels],
        )
        expected = losses.cross_entropy(masks, logits)
        np.testing.assert_allclose(loss(masks, logits, np.ones((4, 5, 6), np.float32)), expected)
        with pytest.raises(tf.errors.InvalidArgumentError, match="`pixel_weights` must have the"):
            loss(masks, logits, np.ones(shape, np.float32))

    @pytest.mark.parametrize("loss", [losses.cross_entropy, losses.focal])
    @pytest.mark.parametrize(
        "weights", [[1.0], [1, 2, 3], [[1, 2]], [1, -1], [1, float("nan")], [float("inf"), 1]]
    )
    def test_class_weights_are_one_number_for_each_class(self, loss, weights):
        with pytest.raises(ValueError, match=r"`class_weights` .* for each of the 2 classes"):
            loss(*problem(), class_weights=weights)

    def test_examples_do_not_mix(self):
        masks, logits = problem()
        whole = losses.cross_entropy(masks, logits, class_weights=(1, 9))
        for row in range(4):
            one = losses.cross_entropy(masks[row, None], logits[row, None], class_weights=(1, 9))
            np.testing.assert_allclose(one, whole[row, None], rtol=1e-6)


class TestFocal:
    def test_pixel_matches_the_hand_value(self):
        # p = 3/4: (1/4)^2 * -ln(3/4).
        masks = np.ones((1, 1, 1), np.uint8)
        logits = np.full((1, 1, 1, 1), np.log(3.0), np.float32)
        np.testing.assert_allclose(losses.focal(masks, logits), [-np.log(0.75) / 16], rtol=1e-5)

    @pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
    @pytest.mark.parametrize("classes", [1, 3])
    def test_value_equals_the_formula(self, classes, gamma):
        masks, logits = problem(classes)
        p = of_true_class(masks, logits)
        expected = ((1 - p) ** gamma * -np.log(p)).mean((1, 2))
        np.testing.assert_allclose(losses.focal(masks, logits, gamma=gamma), expected, rtol=1e-4)

    @pytest.mark.parametrize("classes", [1, 3])
    def test_gamma_of_zero_is_cross_entropy(self, classes):
        masks, logits = problem(classes)
        np.testing.assert_allclose(
            losses.focal(masks, logits, gamma=0.0), losses.cross_entropy(masks, logits), rtol=1e-6
        )

    @pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("logit", [50.0, -50.0, 120.0])
    def test_gradient_at_extreme_logits_is_finite_for_every_gamma(self, gamma, logit):
        logits = tf.fill([1, 2, 1, 1], logit)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = losses.focal(np.array([[[0], [1]]], np.uint8), logits, gamma=gamma)
        gradient = np.ravel(tape.gradient(values, logits))
        # The pixel that is completely wrong has the slope of cross entropy, 1 by 2 pixels, towards
        # its class; the one that is right has none.
        wrong, sign = (0, 1) if logit > 0 else (1, -1)
        assert gradient[wrong] == pytest.approx(sign / 2, rel=1e-4)
        assert gradient[1 - wrong] == pytest.approx(0, abs=1e-6)


class TestOverlap:
    def test_half_overlap_matches_the_hand_value(self):
        # Class 1 has 2 true pixels and 2 predicted, 1 in common: dice (2 + s) / (4 + s) with s = 1
        # is 3/5. So has class 0. The loss is 1 - 3/5.
        masks = np.array([[[1, 1], [0, 0]]], np.uint8)
        logits = np.array([[[60, -60], [60, -60]]], np.float32)[..., None]
        np.testing.assert_allclose(losses.soft_dice(masks, logits), [0.4], rtol=1e-5)

    def test_tversky_weights_matched_by_hand(self):
        # Class 1: one true pixel, three predicted, TP 1, FP 2, FN 0:
        # (1 + 1) / (1 + 0.3 * 2 + 0 + 1) = 2 / 2.6.
        masks = np.array([[[1, 0], [0, 0]]], np.uint8)
        logits = np.array([[[60, 60], [60, -60]]], np.float32)[..., None]
        found = losses.tversky(masks, logits, alpha=0.3, beta=0.7, classes=[1])
        np.testing.assert_allclose(found, [1 - 2 / 2.6], rtol=1e-5)
        # Class 0: three true, one predicted, TP 1, FP 0, FN 2: (1 + 1) / (1 + 0.7 * 2 + 1).
        found = losses.tversky(masks, logits, alpha=0.3, beta=0.7, classes=[0])
        np.testing.assert_allclose(found, [1 - 2 / 3.4], rtol=1e-5)

    @pytest.mark.parametrize("classes", [1, 4])
    @pytest.mark.parametrize("counted", [None, [1], [1, 0]])
    def test_value_equals_the_formula(self, classes, counted):
        masks, logits = problem(classes)
        hit, false_positive, false_negative = counts(masks, logits)
        index = (hit + 2) / (hit + 0.2 * false_positive + 0.9 * false_negative + 2)
        expected = 1 - index[:, counted or slice(None)].mean(-1)
        found = losses.tversky(masks, logits, alpha=0.2, beta=0.9, classes=counted, smooth=2.0)
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    @pytest.mark.parametrize("classes", [1, 4])
    def test_dice_equals_its_own_formula(self, classes):
        masks, logits = problem(classes)
        hit, false_positive, false_negative = counts(masks, logits)
        index = (2 * hit + 3) / (2 * hit + false_positive + false_negative + 3)
        np.testing.assert_allclose(
            losses.soft_dice(masks, logits, smooth=3.0), 1 - index.mean(-1), rtol=1e-4
        )

    def test_equal_halves_of_tversky_are_dice(self):
        masks, logits = problem(3)
        # 2 TP + s over 2 TP + FP + FN + s is TP + s/2 over TP + FP/2 + FN/2 + s/2.
        np.testing.assert_allclose(
            losses.tversky(masks, logits, alpha=0.5, beta=0.5, smooth=0.5),
            losses.soft_dice(masks, logits, smooth=1.0),
            rtol=1e-6,
        )

    def test_batchwise_value_is_that_of_the_summed_counts_for_every_example(self):
        masks, logits = problem(3)
        hit, false_positive, false_negative = (c.sum(0) for c in counts(masks, logits))
        index = (2 * hit + 1) / (2 * hit + false_positive + false_negative + 1)
        found = losses.soft_dice(masks, logits, batchwise=True)
        np.testing.assert_allclose(found, np.full(4, 1 - index.mean()), rtol=1e-4)
        # Which is not the mean over examples.
        assert abs(found[0] - tf.reduce_mean(losses.soft_dice(masks, logits))) > 1e-3


class TestWrongSettings:
    @pytest.mark.parametrize(
        ("loss", "name", "rule"),
        [
            (losses.focal, "gamma", "at least 0"),
            (losses.tversky, "alpha", "at least 0"),
            (losses.tversky, "beta", "at least 0"),
            (losses.tversky, "smooth", "greater than 0"),
            (losses.soft_dice, "smooth", "greater than 0"),
        ],
    )
    @pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
    def test_number_that_is_negative_or_not_finite_is_refused(self, loss, name, rule, value):
        with pytest.raises(ValueError, match=rf"`{name}` \({value}\) must be {rule} and finite"):
            loss(*problem(), **{name: value})

    @pytest.mark.parametrize("loss", [losses.tversky, losses.soft_dice])
    def test_smoothing_of_zero_is_refused(self, loss):
        with pytest.raises(ValueError, match=r"`smooth` \(0\) must be greater than 0"):
            loss(*problem(), smooth=0)

    @pytest.mark.parametrize("loss", [losses.tversky, losses.soft_dice])
    @pytest.mark.parametrize("chosen", [[5], [0, 2], [-1], [0.5], []])
    def test_counted_class_that_is_none_is_refused(self, loss, chosen):
        with pytest.raises(ValueError, match=r"`classes` \(\[.*\]\) must be .* from 0 to 1"):
            loss(*problem(), classes=chosen)


class TestReplicas:
    @pytest.mark.parametrize("replicas", [2, 4])
    @pytest.mark.parametrize("name", ["batch_dice", "batch_tversky"])
    @pytest.mark.parametrize("overlapping", [False, True])
    def test_value_and_gradient_of_batchwise_losses_equal_those_of_one_replica(
        self, mirrored, name, replicas, overlapping
    ):
        masks, logits = problem(3)
        if overlapping:
            masks, _, logits, _ = overlapping_problem(3)

        def value_and_gradient(masks, logits):
            # As the train step does: the sum over examples by the global batch size.
            with tf.GradientTape() as tape:
                tape.watch(logits)
                values = LOSSES[name](masks, logits, overlapping=overlapping)
                loss = tf.reduce_sum(values) / 4
            return values, tape.gradient(loss, logits)

        values, gradient = value_and_gradient(masks, tf.constant(logits))

        def replica_rows():
            context = tf.distribute.get_replica_context()
            rows = tf.range(4 // replicas) + context.replica_id_in_sync_group * (4 // replicas)
            return value_and_gradient(tf.gather(masks, rows), tf.gather(logits, rows))

        strategy = mirrored(replicas)
        found = tf.function(lambda: strategy.run(replica_rows))()
        found_values, found_gradient = (
            tf.concat(strategy.experimental_local_results(result), 0) for result in found
        )
        np.testing.assert_allclose(found_values, values, rtol=1e-5)
        np.testing.assert_allclose(found_gradient, gradient, rtol=1e-4, atol=1e-8)


class TestWeightedSum:
    def test_terms_add_up_with_their_weights(self):
        masks, logits = problem()
        total = losses.weighted_sum(
            [
                (2.0, lambda m, g, w: losses.cross_entropy(m, g, pixel_weights=w)),
                (0.5, lambda m, g, _: losses.soft_dice(m, g)),
            ]
        )
        expected = 2 * losses.cross_entropy(masks, logits) + 0.5 * losses.soft_dice(masks, logits)
        np.testing.assert_allclose(total(masks, logits), expected, rtol=1e-6)


class TestDeeplySupervised:
    def test_levels_have_halved_weights_and_the_middle_of_each_block(self):
        rng = np.random.default_rng(0)
        masks = rng.integers(0, 3, (2, 9, 6)).astype(np.uint8)
        pixels = rng.random((2, 9, 6)).astype(np.float32)
        logits = [
            rng.normal(size=(2, *size, 3)).astype(np.float32) for size in ((9, 6), (5, 3), (3, 2))
        ]

        def loss(masks, logits, pixel_weights=None):
            return losses.cross_entropy(masks, logits, pixel_weights=pixel_weights)

        found = losses.deeply_supervised(loss)(masks, logits, pixels)
        rows, columns = [[1, 3, 5, 7, 8], [2, 6, 8]], [[1, 3, 5], [2, 5]]
        expected = 4 / 7 * loss(masks, logits[0], pixels)
        for level in (0, 1):
            block = np.ix_(range(2), rows[level], columns[level])
            weight = (2 / 7, 1 / 7)[level]
            expected += weight * loss(masks[block], logits[level + 1], pixels[block])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


class TestParse:
    @pytest.mark.parametrize("name", ["cross_entropy", "focal", "batch_dice", "batch_tversky"])
    def test_bare_name_is_that_loss(self, name):
        masks, logits = problem()
        np.testing.assert_allclose(
            losses.parse(name)(masks, logits), LOSSES[name](masks, logits), rtol=1e-6
        )

    def test_weights_and_settings_reach_their_losses(self):
        masks, logits = problem(3)
        loss = losses.parse(
            "cross_entropy:0.5, dice:2,focal, tversky:3",
            class_weights=(1, 2, 3),
            overlap_classes=[2],
            focal_gamma=1.0,
            tversky_alpha=0.1,
            tversky_beta=0.4,
        )
        expected = (
            0.5 * losses.cross_entropy(masks, logits, class_weights=(1, 2, 3))
            + 2 * losses.soft_dice(masks, logits, classes=[2])
            + losses.focal(masks, logits, gamma=1.0, class_weights=(1, 2, 3))
            + 3 * losses.tversky(masks, logits, alpha=0.1, beta=0.4, classes=[2])
        )
        np.testing.assert_allclose(loss(masks, logits), expected, rtol=1e-6)

    @pytest.mark.parametrize(
        "entry", ["jaccard", "dice:x", "", "dice:1:2", "Dice", "dice:nan", "dice:inf"]
    )
    def test_entry_that_is_not_known_is_named_with_the_choices(self, entry):
        with pytest.raises(UserError, match=r"`loss`: .* out of cross_entropy, focal, d") as error:
            losses.parse(f"cross_entropy,{entry}")
        assert repr(entry) in str(error.value)


class TestIgnoredPixels:
    def ignoring(self, masks):
        ignored = np.random.default_rng(1).random(masks.shape) < 0.4
        return np.where(ignored, IGNORED, masks).astype(np.uint8), ignored

    @pytest.mark.parametrize("classes", [1, 3])
    @pytest.mark.parametrize("weights", [None, [2.0, 0.5, 3.0]])
    @pytest.mark.parametrize("name", ["cross_entropy", "focal"])
    def test_mean_over_pixels_takes_them_for_zero(self, name, classes, weights):
        masks, logits = problem(classes)
        with_ignored, ignored = self.ignoring(masks)
        weights = weights and weights[: max(2, classes)]
        pixel_weights = np.where(ignored, 0, 1).astype(np.float32)
        loss = LOSSES[name]
        np.testing.assert_allclose(
            loss(with_ignored, logits, class_weights=weights),
            loss(masks, logits, class_weights=weights, pixel_weights=pixel_weights),
            rtol=1e-6,
        )

    @pytest.mark.parametrize("classes", [1, 3])
    @pytest.mark.parametrize("name", ["tversky", "soft_dice", "batch_tversky", "batch_dice"])
    def test_overlap_is_that_of_the_other_pixels(self, name, classes):
        masks, logits = problem(classes)
        with_ignored, ignored = self.ignoring(masks)
        kept = np.where(~ignored)
        rows = []
        for row in range(4):
            inside = kept[0] == row
            where = tuple(axis[inside] for axis in kept)
            rows.append((masks[where], logits[where]))
        if name.startswith("batch"):
            masks_kept, logits_kept = (np.concatenate(part) for part in zip(*rows, strict=True))
            expected = LOSSES[name](masks_kept[None, None], logits_kept[None, None])
            expected = np.repeat(expected, 4)
        else:
            expected = [float(LOSSES[name](m[None, None], g[None, None])[0]) for m, g in rows]
        np.testing.assert_allclose(LOSSES[name](with_ignored, logits), expected, rtol=1e-5)

    @pytest.mark.parametrize("name", LOSSES)
    def test_their_logits_get_no_gradient(self, name):
        masks, logits = problem(3)
        with_ignored, ignored = self.ignoring(masks)
        logits = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_sum(LOSSES[name](with_ignored, logits))
        gradient = tape.gradient(value, logits).numpy()
        assert (gradient[ignored] == 0).all()
        assert np.abs(gradient[~ignored]).min() > 0

    @pytest.mark.parametrize("name", LOSSES)
    def test_image_of_nothing_else_is_finite(self, name):
        masks, logits = problem(3)
        values = LOSSES[name](np.full_like(masks, IGNORED), logits).numpy()
        np.testing.assert_allclose(values, 0, atol=1e-6)


def overlapping_problem(classes=2, rows=4):
    """Returns masks [rows, 5, 6], truth [rows, 5, 6, C], logits and the pixels that count.

    Some pixels are of none, some of several classes, and about a fifth is ignored.
    """
    rng = np.random.default_rng(0)
    truth = rng.random((rows, 5, 6, classes)) < 0.4
    counted = rng.random((rows, 5, 6)) < 0.8
    masks = np.where(counted, truth @ 2 ** np.arange(classes), IGNORED).astype(np.uint8)
    logits = 2 * rng.standard_normal((rows, 5, 6, classes))
    return masks, truth, logits.astype(np.float32), counted


class TestOverlapping:
    @pytest.mark.parametrize("classes", [1, 2, 3, 7])
    @pytest.mark.parametrize("gamma", [None, 2.0])
    def test_binary_terms_are_averaged_over_classes_and_pixels(self, classes, gamma):
        masks, truth, logits, counted = overlapping_problem(classes)
        weights = np.arange(1.0, classes + 1)
        pixels = np.random.default_rng(1).random(masks.shape).astype(np.float32)
        # The probability of what is true, class by class; 0 where nothing counts.
        right = 1 / (1 + np.exp(-np.where(truth, 1, -1) * logits.astype(np.float64)))
        terms = -np.log(right) * (1 if gamma is None else (1 - right) ** gamma)
        terms *= weights * counted[..., None] * pixels[..., None]
        given = dict(class_weights=weights, pixel_weights=pixels, overlapping=True)
        found = (
            losses.cross_entropy(masks, logits, **given)
            if gamma is None
            else losses.focal(masks, logits, gamma=gamma, **given)
        )
        np.testing.assert_allclose(found, terms.mean((1, 2, 3)), rtol=1e-5)

    @pytest.mark.parametrize("classes", [1, 3])
    @pytest.mark.parametrize("batchwise", [False, True])
    @pytest.mark.parametrize("chosen", [None, [0]])
    def test_overlap_is_that_of_each_class(self, classes, batchwise, chosen):
        masks, truth, logits, counted = overlapping_problem(classes)
        p = counted[..., None] / (1 + np.exp(-logits.astype(np.float64)))
        y = truth * counted[..., None]
        sums = np.stack([(p * y).sum((1, 2)), p.sum((1, 2)), y.sum((1, 2))])
        if batchwise:
            sums = np.repeat(sums.sum(1, keepdims=True), 4, 1)
        hit, predicted, true = sums
        # 0.3 of the false positives, 0.7 of the false negatives, one pixel added to both sides.
        tversky = (hit + 1) / (hit + 0.3 * (predicted - hit) + 0.7 * (true - hit) + 1)
        dice = (2 * hit + 1) / (predicted + true + 1)
        given = dict(classes=chosen, batchwise=batchwise, overlapping=True)
        for loss, index in ((losses.tversky, tversky), (losses.soft_dice, dice)):
            found = loss(masks, logits, **given)
            expected = 1 - index[:, chosen or range(classes)].mean(-1)
            np.testing.assert_allclose(found, expected, rtol=1e-5)

    @pytest.mark.parametrize("name", ["cross_entropy", "focal"])
    def test_one_class_has_value_and_gradient_of_two_classes_that_share_a_logit(self, name):
        masks, _, logits, _ = overlapping_problem(classes=1)
        logits = tf.constant(logits)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(logits)
            two = LOSSES[name](masks, logits)
            one = LOSSES[name](masks, logits, overlapping=True)
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(tape.gradient(one, logits), tape.gradient(two, logits))

    @pytest.mark.parametrize("name", LOSSES)
    def test_ignored_pixels_get_no_gradient_and_alone_are_finite(self, name):
        masks, _, logits, counted = overlapping_problem(classes=3)
        loss = functools.partial(LOSSES[name], overlapping=True)
        logits = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_sum(loss(masks, logits))
        gradient = tape.gradient(value, logits).numpy()
        assert (gradient[~counted] == 0).all()
        assert np.abs(gradient[counted]).min() > 0
        np.testing.assert_allclose(loss(np.full_like(masks, IGNORED), logits), 0, atol=1e-6)

    @pytest.mark.parametrize("compiled", [False, True])
    def test_mask_beyond_the_last_class_is_refused(self, compiled):
        masks, _, logits, _ = overlapping_problem(classes=2)
        masks[0, 0, 0] = 4
        loss = losses.parse("dice", overlapping=True)
        with pytest.raises(
            (ValueError, tf.errors.InvalidArgumentError), match=r"0 to 3 .*2 overlapping classes"
        ):
            (tf.function(loss) if compiled else loss)(masks, logits)
