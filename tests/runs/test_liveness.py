"""Memory of traced graphs by liveness, in bytes that are derived by hand."""

import tensorflow as tf

from unet_core.runs import liveness

# Of a tensor of ten numbers.
SIZE = 40


def peak(function, *shapes, unfolds=False):
    traced = tf.function(function).get_concrete_function(
        *(tf.TensorSpec(shape or [10], tf.float32) for shape in shapes or [None])
    )
    return liveness.peak_bytes(traced.graph, unfolds=unfolds)


class TestPeak:
    def test_tensor_is_there_from_its_op_to_its_last_use(self):
        def function(x):
            a = tf.sin(x)
            b = tf.cos(a)
            c = tf.sin(b)
            return tf.cos(c)

        # An op has its input and its output; what is given to the function is not its own.
        assert peak(function) == 2 * SIZE

    def test_tensor_that_is_read_later_is_kept(self):
        def function(x):
            a = tf.sin(x)
            b = tf.cos(a)
            c = tf.sin(b)
            return tf.atan2(tf.cos(c), a)

        # At the last cosine: a, c and the result; at the end: a, the cosine and the result.
        assert peak(function) == 3 * SIZE

    def test_gradient_keeps_what_it_reads(self):
        def function(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.sin(tf.sin(tf.sin(x)))
            return tape.gradient(y, x)

        # The inputs of all sines are read again, by the cosines of the backward pass, so that at
        # the last sine there are three; forward alone there would be two. The gradient of y is a
        # constant, each product takes over the buffer of a cosine, and each cosine is the last to
        # read an input.
        assert peak(function) == 3 * SIZE

    def test_op_in_place_takes_over_what_nobody_else_reads(self):
        assert peak(lambda x: tf.nn.relu(tf.sin(x))) == SIZE

    def test_op_in_place_leaves_what_is_read_later(self):
        def function(x):
            a = tf.sin(x)
            return tf.atan2(tf.nn.relu(a), a)

        # The sine, its ReLU and the result.
        assert peak(function) == 3 * SIZE

    def test_view_takes_nothing_and_keeps_what_it_looks_at(self):
        def function(x):
            view = tf.reshape(tf.sin(x), [2, 5])
            return tf.cos(view)

        assert peak(function) == 2 * SIZE

    def test_function_counts_at_its_call(self):
        @tf.function(autograph=False, experimental_attributes={"_noinline": True})
        def inner(x):
            return tf.cos(tf.sin(x))

        # The first sine and its two inside, beside the place of the result.
        assert peak(lambda x: inner(tf.sin(x))) == 4 * SIZE

    def test_loop_counts_its_body(self):
        def body(i, x):
            return i + 1, tf.cos(tf.sin(tf.cos(x)))

        def function(x):
            return tf.while_loop(lambda i, _: i < 3, body, (tf.constant(0), x))[1]

        found = peak(function)
        assert 2 * SIZE <= found <= 3 * SIZE + 16

    def test_windows_of_gradients_of_convolutions_count_where_they_are_copied(self):
        def function(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                y = tf.nn.conv2d(x, kernel, 1, "SAME")
            return tape.gradient(y, kernel)

        shapes = [2, 4, 4, 3], [3, 3, 3, 5]
        # The largest there is otherwise: the output, 2 x 4 x 4 x 5 numbers.
        assert peak(function, *shapes) == 640
        # Of both images 4 x 4 windows of 3 x 3 x 3 numbers, for each of the two gradients; beside
        # them the gradient of the kernel, 27 x 5 numbers, and four that are the shape of it.
        assert peak(function, *shapes, unfolds=True) == 2 * (2 * 4 * 4 * 27 * 4) + 540 + 16


class TestCount:
    def test_ops_of_functions_count(self):
        @tf.function(autograph=False)
        def inner(x):
            return tf.cos(tf.sin(x))

        spec = tf.TensorSpec([10], tf.float32)
        own = liveness.count_ops(inner.get_concrete_function(spec).graph)
        outer = tf.function(lambda x: inner(x)).get_concrete_function(spec).graph
        assert liveness.count_ops(outer) == len(outer.get_operations()) + own
