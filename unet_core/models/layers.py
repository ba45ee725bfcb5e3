"""Layers that Keras lacks or does more slowly.

Fused batch norm, dropout that does not depend on the replicas, padding to any size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from unet_core.conventions import mirrored
from unet_core.models import passes


@keras.saving.register_keras_serializable(package="unet_core")
class FusedBatchNorm(keras.layers.Layer):
    """Batch normalisation over [N, H, W] by TensorFlow's fused kernel, over all replicas.

    Statistics are those of the global batch, so the number of replicas does not change the
    mathematics, and the moving averages are equal on every replica. Replicas may have different
    numbers of rows, or none. The averages are kept with the population variance. Keras'
    `BatchNormalization` (seen on 3.15) does not use the fused kernel and takes about twice as long.

    With `trainable` False, its own or that of the model, it always normalises by the moving
    averages and leaves them as they are, as Keras' layer does.

    It is not for replicas that have many images each (16 or more) on a slow link: statistics of one
    replica are then good enough, and the two sums a step cost more.

    Input and output: [B, H, W, C] in the compute dtype; statistics are float32.
    """

    def __init__(self, *, momentum: float = 0.9, epsilon: float = 1e-3, **kwargs):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        """Makes scale, offset and moving averages, [C] float32 each."""
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", autocast=False)
        self.moving_mean = _equal_on_replicas("zeros", shape, "float32", "moving_mean")
        self.moving_variance = _equal_on_replicas("ones", shape, "float32", "moving_variance")

    def call(self, inputs, training=False):
        """Returns `inputs` normalised; in training, moves the averages on."""
        gamma, beta = (tf.convert_to_tensor(v.value) for v in (self.gamma, self.beta))
        if not (training and self.trainable):
            moving = self.moving_mean.value, self.moving_variance.value
            return _fused(inputs, gamma, beta, *moving, epsilon=self.epsilon, training=False).y
        outputs, mean, variance = _normalise(inputs, gamma, beta, self.epsilon)
        if passes.is_second():
            return outputs
        # An activation that overflows skips the step; it must not stay in the statistics for ever.
        finite = tf.reduce_all(tf.math.is_finite(mean + variance))
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moved = moving.value * self.momentum + batch * (1 - self.momentum)
            moving.value.assign(tf.where(finite, moved, moving.value))
        return outputs

    # Keras gives it all that `call` gets.
    def compute_output_spec(self, inputs, training=False):  # noqa: ARG002
        """Returns the shape and dtype of the output: shape of the input, compute dtype."""
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="unet_core")
class RowDropout(keras.layers.Layer):
    """Dropout whose mask does not depend on the replicas.

    It depends on (seed, calls so far, row of the global batch).

    One layer draws one mask for the global batch and each replica takes its rows, so rows differ
    and any number of replicas agrees with one. Keras' `Dropout` draws the same mask on every
    replica. The count of training calls is a variable, so it is in every checkpoint and a resumed
    run goes on with the masks it would have drawn.

    Where the number of rows is not known while tracing, replicas may have different ones, or none,
    and tell one another theirs; where it is known, all have the same.

    Args:
        rate: Share of values set to 0, 0 <= rate < 1; the others grow by 1 / (1 - rate).
        seed: Tells one layer's masks from another's.
        whole: Whether a row is kept or dropped as a whole, which in a residual branch is
            stochastic depth (Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(self, rate: float, *, seed: int, whole: bool = False, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` ({rate}) must be at least 0 and less than 1.")
        self.rate = rate
        self.seed = seed
        self.whole = whole

    def build(self, input_shape):  # noqa: ARG002 (Keras gives it.)
        """Makes the count of training calls."""
        self.calls = _equal_on_replicas("zeros", (), "int64", "calls")

    def call(self, inputs, training=False):
        """Returns `inputs`; in training, with some values set to 0 and the others grown."""
        if not training or self.rate == 0:
            return inputs
        first, rows = _rows_before_and_in_all(inputs)
        shape = tf.shape(inputs)
        of_a_row = tf.ones_like(shape[1:]) if self.whole else shape[1:]
        count = passes.same_in_both(lambda: tf.identity(self.calls.value))
        draws = tf.random.stateless_uniform(
            tf.concat([[rows], of_a_row], 0), tf.stack([tf.cast(self.seed, tf.int64), count])
        )
        if not passes.is_second():
            self.calls.value.assign_add(1)
        kept = draws[first : first + shape[0]] >= self.rate
        return tf.where(kept, inputs / tf.cast(1 - self.rate, inputs.dtype), tf.zeros_like(inputs))

    # Keras gives it all that `call` gets.
    def compute_output_spec(self, inputs, training=False):  # noqa: ARG002
        """Returns the shape and dtype of the output: shape of the input, compute dtype."""
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        config = {"rate": self.rate, "seed": self.seed, "whole": self.whole}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="unet_core")
class PickChannels(keras.layers.Layer):
    """Gives channels of [B, H, W, C] in another order, or more than once.

    Args:
        order: The numbers of the channels: [2, 1, 0] makes BGR of RGB, [0, 0, 0] repeats grey.
    """

    def __init__(self, order: Sequence[int], **kwargs):
        super().__init__(**kwargs)
        self.order = list(order)

    def call(self, inputs):
        """Returns [B, H, W, len(order)] of the type of `inputs`."""
        return tf.gather(inputs, self.order, axis=-1)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output."""
        return keras.KerasTensor((*inputs.shape[:-1], len(self.order)), dtype=inputs.dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "order": self.order}


@keras.saving.register_keras_serializable(package="unet_core")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel by a weight of its own (Touvron et al. 2021, arXiv:2103.17239).

    That of `keras.applications` (3.15) is neither public nor registered.

    Args:
        init_values: What the weights begin with.
    """

    def __init__(self, init_values: float, **kwargs):
        super().__init__(**kwargs)
        self.init_values = init_values

    def build(self, input_shape):
        """Makes the weights, [C]."""
        initialiser = keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight(
            name="gamma", shape=(input_shape[-1],), initializer=initialiser
        )

    def call(self, inputs):
        """Returns `inputs` [B, H, W, C] times the weights."""
        return inputs * self.gamma

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "init_values": self.init_values}


@keras.saving.register_keras_serializable(package="unet_core")
class MirrorPad(keras.layers.Layer):
    """Pads [B, H, W, C] by mirroring to a size the U-Net can take, whatever H and W are.

    With `same` convolutions: down and right to the next multiple of 2**depth. With `valid` ones:
    all around, to the smallest size at which every pooling sees an even number of pixels and the
    output covers the input.

    Args:
        depth: Number of poolings.
        valid: Whether the convolutions are unpadded.
    """

    def __init__(self, *, depth: int, valid: bool, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth
        self.valid = valid

    def call(self, inputs):
        """Returns `inputs` padded."""
        for axis in (1, 2):
            size = inputs.shape[axis]
            size = tf.shape(inputs)[axis] if size is None else size
            before, after = padding_for(size, self.depth, self.valid)
            if isinstance(size, int) and before == after == 0:
                continue
            index = mirrored(tf.range(-before, size + after), size, tf)
            inputs = tf.gather(inputs, index, axis=axis)
        return inputs

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output; a size is known where the input's is."""
        sizes = [
            None if size is None else size + sum(padding_for(size, self.depth, self.valid))
            for size in inputs.shape[1:3]
        ]
        return keras.KerasTensor((inputs.shape[0], *sizes, inputs.shape[3]), dtype=inputs.dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "depth": self.depth, "valid": self.valid}


@keras.saving.register_keras_serializable(package="unet_core")
class CropLike(keras.layers.Layer):
    """Crops the first input [B, h, w, C] from the top left to the size of the second [B, H, W, D].

    Args:
        stride: Pixels of the second for one of the first, so that the size is
            [ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, stride: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, inputs):
        """Returns the first of `inputs`, cropped."""
        outputs, like = inputs
        sizes = self._sizes(like.shape)
        if outputs.shape[1:3] == tuple(sizes) and None not in sizes:
            return outputs
        height, width = (-(-tf.shape(like)[axis] // self.stride) for axis in (1, 2))
        cropped = outputs[:, :height, :width]
        cropped.set_shape([outputs.shape[0], *sizes, outputs.shape[3]])
        return cropped

    def _sizes(self, shape) -> list[int | None]:
        return [size and -(-size // self.stride) for size in shape[1:3]]

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output: of the first, with the second's size."""
        outputs, like = inputs
        shape = (like.shape[0], *self._sizes(like.shape), outputs.shape[3])
        return keras.KerasTensor(shape, dtype=outputs.dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "stride": self.stride}


@keras.saving.register_keras_serializable(package="unet_core")
class MeanOfNetworks(keras.layers.Layer):
    """Gives the logits whose probabilities are the mean of those of several networks' logits.

    With one logit, log(sum p / sum (1 - p)) over the networks; with more, log(sum p) of each class.
    Sums are of logarithms, so that nothing overflows.

    Args:
        overlapping: Whether classes may overlap: each logit is then treated as the only one.
    """

    def __init__(self, overlapping: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.overlapping = overlapping

    def call(self, inputs):
        """Returns [B, H, W, K] of a list of such, the logits of one network each."""
        logits = tf.stack([tf.cast(x, self.compute_dtype) for x in inputs])
        if self.overlapping or logits.shape[-1] == 1:
            second, first = (tf.math.log_sigmoid(x) for x in (logits, -logits))
            return tf.reduce_logsumexp(second, 0) - tf.reduce_logsumexp(first, 0)
        return tf.reduce_logsumexp(tf.nn.log_softmax(logits), 0)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the output: the shape of each, compute dtype."""
        return keras.KerasTensor(inputs[0].shape, dtype=self.compute_dtype)

    def get_config(self):
        """Returns the settings with which Keras makes the layer again."""
        return {**super().get_config(), "overlapping": self.overlapping}


def padding_for(size, depth: int, valid: bool):
    """Returns the pixels to add before and after an axis of `size` pixels.

    `size` is an int, or a scalar int32 tensor.
    """
    step = 2**depth
    if not valid:
        return 0, -size % step
    # From the bottom up: b pixels there need n = step * b + 4 * (step - 1) at the input and give
    # step * (b - 4) - 4 * (step - 1) at the output (Ronneberger et al. 2015: b = 32, 572 -> 388).
    margin = 4 * (step - 1)
    bottom = -(-(size + margin) // step) + 4
    total = step * bottom + margin - size
    halo = margin + 2 * step
    return halo, total - halo


def _equal_on_replicas(
    initializer: str, shape: tuple[int, ...], dtype: str, name: str
) -> keras.Variable:
    """Returns a variable of which each replica keeps its own copy, all equal.

    It needs no communication, and is exact when saved.
    """
    return keras.Variable(
        initializer,
        shape=shape,
        dtype=dtype,
        trainable=False,
        autocast=False,
        synchronization="on_read",
        aggregation="only_first_replica",
        name=name,
    )


def _fused(inputs, scale, offset, mean=(), variance=(), *, epsilon: float, training: bool):
    """Runs the fused kernel: in training with batch statistics, otherwise with those given."""
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=training,
    )


def _population_variance(raw, inputs) -> tf.Tensor:
    """Returns the variance without Bessel's correction.

    The kernel normalises without it, but returns the variance with it.
    """
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
    return raw.batch_variance * (count - 1) / count


def _normalise(inputs, gamma, beta, epsilon: float):
    """Returns `inputs` normalised over the batches of all replicas, and their statistics.

    These are (normalised [B, H, W, C], mean [C], population variance [C]).
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        raw = _fused(inputs, gamma, beta, epsilon=epsilon, training=True)
        return raw.y, raw.batch_mean, _population_variance(raw, inputs)
    return _normalise_over_replicas(inputs, gamma, beta, epsilon, context)


def _normalise_over_replicas(inputs, gamma, beta, epsilon: float, context):
    """As `_normalise`, with statistics and gradients over the rows of all replicas of `context`.

    The fused kernel neither shares statistics nor differentiates through those it is given, so the
    gradient is put together here from the kernel's own sums:

        dx = gamma / sd * (dy - mean(dy) - xhat * mean(dy * xhat)),  xhat = (x - mean) / sd

    (Ioffe and Szegedy 2015, arXiv:1502.03167), both means over all pixels of all replicas.
    """
    sum_over_replicas = functools.partial(context.all_reduce, tf.distribute.ReduceOp.SUM)
    x, ones = tf.stop_gradient(inputs), tf.ones_like(gamma)
    raw = _fused(x, ones, tf.zeros_like(ones), epsilon=epsilon, training=True)
    own_square = _population_variance(raw, x) + tf.square(raw.batch_mean)
    own_count = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
    own = tf.stop_gradient(tf.stack([raw.batch_mean, own_square, ones]))
    # Statistics of no rows are NaN.
    mean, square, count = tf.unstack(sum_over_replicas(tf.math.multiply_no_nan(own, own_count)))
    mean, square, count = mean / count, square / count, count[0]
    variance = tf.maximum(square - tf.square(mean), 0)

    # What is shared is an argument: TensorFlow (2.21) walks from the results of such a function
    # back to its arguments, through the graphs of all replicas if nothing stops it.
    @tf.custom_gradient
    def normalise(x, gamma, beta, mean, variance, count):
        y = _fused(x, gamma, beta, mean, variance, epsilon=epsilon, training=False).y

        def gradient(dy):
            dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=dy,
                x=x,
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
                is_training=False,
            )
            mean_dgamma, mean_dbeta = tf.unstack(
                sum_over_replicas(tf.stack([dgamma, dbeta])) / count
            )
            inverse = tf.math.rsqrt(variance + epsilon)
            slope = -gamma * tf.square(inverse) * mean_dgamma
            shift = -gamma * inverse * mean_dbeta - slope * mean
            correction = tf.cast(x, tf.float32) * slope + shift
            dx = tf.cast(tf.cast(dx, tf.float32) + correction, x.dtype)
            return dx, dgamma, dbeta, None, None, None

        return y, gradient

    shared = (tf.stop_gradient(each) for each in (mean, variance, count))
    return normalise(inputs, gamma, beta, *shared), mean, variance


def _rows_before_and_in_all(inputs):
    """Returns how many rows of the global batch precede this replica's, and how many there are."""
    rows = tf.shape(inputs)[0]
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0, rows
    replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync
    if inputs.shape[0] is not None:
        return replica * rows, replicas * rows
    of_each = tf.one_hot(replica, replicas) * tf.cast(rows, tf.float32)
    of_each = tf.cast(context.all_reduce(tf.distribute.ReduceOp.SUM, of_each), tf.int32)
    return tf.reduce_sum(of_each[:replica]), tf.reduce_sum(of_each)
