"""Milliseconds per step of the programs in examples/programs, beside the same written by hand.

    python benchmarks/foreign_programs.py
    python benchmarks/foreign_programs.py --programs gan vae --rounds=31

Each program runs as it is, with its own `for` loop. Whenever it shows a report, the same training
written by hand, with the same networks, data and loss, makes as many steps: so the two are measured
in turn, in one process. By hand means one `tf.function` per step with `GradientTape` and
`optimizer.apply`, a Python loop over the dataset, and the mean loss fetched once per report; where
the program evaluates, saves or writes summaries, the other does too, with TensorFlow's own means.

"ratio" is the median over the rounds of the loop's time over that by hand, with the middle half of
the rounds beside it. "lines" are those between `# training` and `# end of training`, without
comments and empty ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import tensorflow as tf
from rounds import machine, median_ratio

from unet_core.drawing import tables

FOLDER = pathlib.Path(__file__).parent.parent / "examples" / "programs"


@functools.cache
def load(name: str) -> Any:
    """Returns the program `name` as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # AutoGraph looks a function's module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def training_lines(name: str) -> int:
    """Returns how many lines of the program are training code."""
    count, inside = 0, False
    for line in map(str.strip, (FOLDER / f"{name}.py").read_text().splitlines()):
        if line in ("# training", "# end of training"):
            inside = line == "# training"
        elif inside and line and not line.startswith("#"):
            count += 1
    return count


# The same by hand.


@dataclasses.dataclass
class ByHand:
    """A program written by hand.

    Attributes:
        models: What it trains, in the order in which `main` of the program returns it.
        run: Makes so many steps, and what else the program does between two reports; returns the
            mean loss of these steps.
        finish: What it does after its last step.
    """

    models: Sequence[Any]
    run: Callable[[int], float]
    finish: Callable[[], None] = lambda: None


def batches_of(dataset: Callable) -> Any:
    return iter(dataset(0, tf.distribute.InputContext()))


def make_train_step(model: Any, optimizer: Any, loss_of: Callable[[Any], tf.Tensor]) -> Callable:
    """Returns the usual step, `batch -> loss`, to be compiled."""
    optimizer.build(model.trainable_variables)

    def train_step(batch):
        with tf.GradientTape() as tape:
            loss = loss_of(batch)
        variables = model.trainable_variables
        # Keras (3.15) squares each slice of a word that a batch has several times, and not their
        # sum, so the gradient of an embedding must be dense for the true Adam.
        gradients = map(tf.convert_to_tensor, tape.gradient(loss, variables))
        optimizer.apply(list(gradients), variables)
        return loss

    return train_step


def make_run(
    train_step: Callable,
    batches: Any,
    weight_of: Callable[[Any], tf.Tensor] = lambda _: tf.constant(1.0),
) -> Callable[[int], float]:
    """Returns the usual loop: so many steps, then the mean loss is fetched."""
    sums = tf.Variable([0.0, 0.0])

    @tf.function
    def step(batch):
        loss, weight = train_step(batch), weight_of(batch)
        sums.assign_add([loss * weight, weight])

    def run(steps):
        sums.assign([0.0, 0.0])
        for _ in range(steps):
            step(next(batches))
        loss, weight = sums.numpy()
        return loss / weight

    return run


def mean_loss(model: Any, loss: Callable, *, inputs: Callable = lambda batch: batch[0]) -> Callable:
    """Returns batch -> the mean of a loss of (outputs, batch)."""
    return lambda batch: tf.reduce_mean(loss(model(inputs(batch), training=True), batch))


def fine_tuning(steps: int) -> ByHand:
    program = load("fine_tuning")
    backbone, model = program.make_networks()
    optimizer = keras.optimizers.Adam(1e-2)
    train_step = make_train_step(model, optimizer, mean_loss(model, program.cross_entropy))
    batches, done = batches_of(program.dataset), 0
    backbone.trainable = False
    train = make_run(train_step, batches)

    def run(count):
        nonlocal done, train
        if done == steps // 2:
            backbone.trainable = True
            optimizer.learning_rate = 1e-3
            train = make_run(train_step, batches)
        done += count
        return train(count)

    return ByHand([model], run)


def gan(_: int) -> ByHand:
    program = load("gan")
    generator, critic = program.make_network(8, 2), program.make_network(2, 1)
    tell, fool = program.make_losses(generator, critic)
    train_steps = [
        make_train_step(
            model,
            keras.optimizers.Adam(1e-3, beta_1=0.5),
            lambda batch, loss=loss: tf.reduce_mean(loss(batch)),
        )
        for model, loss in ((critic, tell), (generator, fool))
    ]

    def train_step(batch):
        return tf.stack([train(batch) for train in train_steps])[0]

    return ByHand([generator, critic], make_run(train_step, batches_of(program.dataset)))


def tf_module(_: int) -> ByHand:
    program = load("tf_module")
    field = program.Field()
    train_step = make_train_step(
        field,
        keras.optimizers.Adam(1e-3),
        lambda batch: tf.reduce_mean(program.squared_error(field(batch[0]), batch)),
    )
    return ByHand([field], make_run(train_step, batches_of(program.dataset)))


def two_heads(_: int) -> ByHand:
    program = load("two_heads")
    model = program.make_model()
    sums = [tf.Variable(0.0), tf.Variable(0.0)]

    def loss_of(batch):
        inputs, targets, weights = batch
        errors = program.errors(model(inputs, training=True), targets)
        totals = [tf.reduce_sum(error * weights) for error in errors]
        for value, total in zip(sums, totals, strict=True):
            value.assign_add(total)
        return (totals[0] + 0.5 * totals[1]) / tf.reduce_sum(weights)

    train_step = make_train_step(model, keras.optimizers.Adam(3e-3), loss_of)
    train = make_run(train_step, batches_of(program.dataset), lambda batch: tf.reduce_sum(batch[2]))

    def run(count):
        loss = train(count)
        for value in sums:
            value.numpy()  # To be shown.
            value.assign(0.0)
        return loss

    return ByHand([model], run)


def masked_tokens(_: int) -> ByHand:
    program = load("masked_tokens")
    model = program.make_model()

    def count_tokens(batch):
        return tf.reduce_sum(tf.cast(batch[1] > 0, tf.float32))

    def loss_of(batch):
        entropy = program.cross_entropy(model(batch[0], training=True), batch[1])
        return tf.reduce_sum(tf.where(batch[1] > 0, entropy, 0)) / count_tokens(batch)

    optimizer = keras.optimizers.Adam(2e-3, global_clipnorm=1.0)
    train_step = make_train_step(model, optimizer, loss_of)
    return ByHand([model], make_run(train_step, batches_of(program.dataset), count_tokens))


def vae(_: int) -> ByHand:
    program = load("vae")
    model = program.make_model()
    of_batch = mean_loss(model, program.reconstruction, inputs=lambda batch: batch)
    train_step = make_train_step(
        model, keras.optimizers.Adam(2e-3), lambda batch: of_batch(batch) + tf.add_n(model.losses)
    )
    return ByHand([model], make_run(train_step, batches_of(program.dataset)))


def distillation(steps: int) -> ByHand:
    program = load("distillation")
    teacher, student = program.make_network(256), program.make_network(16)
    train = make_run(
        make_train_step(
            teacher, keras.optimizers.Adam(1e-3), mean_loss(teacher, program.cross_entropy)
        ),
        batches_of(program.dataset),
    )
    done = 0

    def run(count):
        nonlocal done, train
        if done == steps // 2:
            loss = program.make_distillation(teacher)
            train_step = make_train_step(
                student, keras.optimizers.Adam(3e-3), mean_loss(student, loss)
            )
            train = make_run(train_step, batches_of(program.dataset))
        done += count
        return train(count)

    return ByHand([teacher, student], run)


def policy_gradient(steps: int) -> ByHand:
    program = load("policy_gradient")
    policy = program.make_policy()
    play, games = program.make_play(policy), iter(range(steps))
    train_step = tf.function(
        make_train_step(
            policy, keras.optimizers.Adam(1e-3), mean_loss(policy, program.policy_gradient)
        )
    )

    def run(count):
        for _ in range(count):
            batch, reward = play(tf.constant(next(games)))
            train_step(batch)
        return float(reward)

    return ByHand([policy], run)


def own_epochs(_: int) -> ByHand:
    program = load("own_epochs")
    model, held_out = program.make_model(), program.samples(1, 256).batch(64)
    optimizer = keras.optimizers.Adam(3e-3)
    train_step = make_train_step(model, optimizer, mean_loss(model, program.squared_error))
    train = make_run(train_step, batches_of(program.dataset))
    epoch, best = tf.Variable(0), float("inf")
    folder = tempfile.TemporaryDirectory()
    saved = tf.train.Checkpoint(
        model=model, variables=[v.value for v in optimizer.variables], epoch=epoch
    )
    manager = tf.train.CheckpointManager(saved, folder.name, max_to_keep=3)

    @tf.function
    def evaluate(batch):
        return tf.reduce_sum(program.squared_error(model(batch[0], training=False), batch))

    def run(count):
        nonlocal best
        loss = train(count)
        epoch.assign_add(1)
        score = float(sum(evaluate(batch) for batch in held_out)) / 256
        manager.save()
        if score < best:
            best = score
            saved.write(f"{folder.name}/best")
        return loss

    def finish():
        saved.read(f"{folder.name}/best").expect_partial()

    return ByHand([model], run, finish)


def resumed_run(_: int) -> ByHand:
    program = load("resumed_run")
    model = program.make_model()
    schedule = program.training.schedules.cosine(1e-2, total_steps=1000, warmup_steps=50)

    class Cosine(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return schedule(step)

    optimizer = keras.optimizers.Adam(Cosine())
    train_step = make_train_step(model, optimizer, mean_loss(model, program.squared_error))
    train = make_run(train_step, batches_of(program.dataset))
    folder = tempfile.TemporaryDirectory()
    saved = tf.train.Checkpoint(model=model, variables=[v.value for v in optimizer.variables])
    manager = tf.train.CheckpointManager(saved, folder.name, max_to_keep=3)
    writer = tf.summary.create_file_writer(f"{folder.name}/events")

    def run(count):
        loss, step = train(count), int(optimizer.iterations)
        with writer.as_default(step):
            tf.summary.scalar("loss", loss)
            tf.summary.scalar("rate", float(optimizer.learning_rate))
        writer.flush()
        manager.save()
        return loss

    return ByHand([model], run, folder.cleanup)


def mean_teacher(_: int) -> ByHand:
    program = load("mean_teacher")
    student, teacher = program.make_network(), program.make_network()
    teacher.trainable = False
    teacher.set_weights(student.get_weights())
    loss = program.make_loss(student, teacher)
    optimizer = keras.optimizers.Adam(2e-3)
    train_student = make_train_step(student, optimizer, lambda batch: tf.reduce_mean(loss(batch)))

    def train_step(batch):
        result = train_student(batch)
        done = tf.cast(optimizer.iterations.value, tf.float32)  # This step included.
        decay = tf.minimum(0.99, done / (9 + done))
        for average, value in zip(teacher.variables, student.variables, strict=True):
            average.value.assign_add((1 - decay) * (value - average))
        return result

    return ByHand([student, teacher], make_run(train_step, batches_of(program.dataset)))


def mobile_net(_: int) -> ByHand:
    program = load("mobile_net")
    model = program.make_model()
    train_step = make_train_step(
        model, keras.optimizers.Adam(1e-3), mean_loss(model, program.cross_entropy)
    )
    folder = tempfile.TemporaryDirectory()
    batches = batches_of(program.make_dataset(folder.name))
    return ByHand([model], make_run(train_step, batches), folder.cleanup)


# Each program by hand, given the number of all steps, and the steps of one round.
PROGRAMS: dict[Callable[[int], ByHand], int] = {
    fine_tuning: 50,
    gan: 200,
    tf_module: 100,
    two_heads: 200,
    masked_tokens: 20,
    vae: 200,
    distillation: 200,
    policy_gradient: 50,
    own_epochs: 16,
    resumed_run: 200,
    mean_teacher: 200,
    mobile_net: 10,
}
BY_NAME = {by_hand.__name__: by_hand for by_hand in PROGRAMS}


# Measuring.


def run_program(name: str, steps: int, every: int, show: Callable, folder: str) -> Any:
    """Runs the program and returns the models that it has trained."""
    main = load(name).main
    if name == "own_epochs":
        return main(folder, epochs=steps // every, patience=steps, show=show)
    if name == "resumed_run":
        return main(folder, steps=steps, every=every, show=show)
    return main(steps=steps, every=every, show=show)


@dataclasses.dataclass
class Both:
    """A program and the same by hand, which have run in turn.

    Attributes:
        models: What the program has trained, and what has been trained by hand.
        seconds: Of each round of the program, and by hand; the first ones compile.
        shown: What the program has shown after each round.
        losses: The mean losses of the rounds by hand.
    """

    models: tuple[Sequence[Any], Sequence[Any]]
    seconds: tuple[list[float], list[float]]
    shown: list[str]
    losses: list[float]


def run_both(name: str, *, rounds: int, every: int) -> Both:
    """Runs the program, and by hand whenever it shows a report.

    Args:
        name: The program.
        rounds: How many reports; an even number for programs of two stages.
        every: Steps of one round.
    """
    keras.utils.set_random_seed(0)
    by_hand = BY_NAME[name](rounds * every)
    result = Both(((), by_hand.models), ([], []), [], [])
    left = time.perf_counter()

    def show(text):
        nonlocal left
        if len(result.losses) == rounds:
            return  # What it shows of its results.
        start = time.perf_counter()
        result.losses.append(by_hand.run(every))
        end = time.perf_counter()
        result.seconds[0].append(start - left)
        result.seconds[1].append(end - start)
        result.shown.append(text)
        left = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        returned = run_program(name, rounds * every, every, show, folder)
    by_hand.finish()
    models = returned if isinstance(returned, tuple) else (returned,)
    return dataclasses.replace(result, models=(models, by_hand.models))


def measure(name: str, *, rounds: int, every: int) -> list[str]:
    """Returns the row of one program."""
    # The first round of each compiles.
    loop, hand = (times[1:] for times in run_both(name, rounds=rounds + 1, every=every).seconds)
    ratios = sorted(a / b for a, b in zip(loop, hand, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    milliseconds = (f"{1000 * statistics.median(times) / every:.2f}" for times in (loop, hand))
    ratio = f"{median_ratio(loop, hand):.2f}"
    return [name, str(training_lines(name)), *milliseconds, ratio, f"{low:.2f}-{high:.2f}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", nargs="+", choices=BY_NAME, default=list(BY_NAME))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, help="steps of one round, of each program")
    args = parser.parse_args(argv)
    print(machine())
    rows = [
        # Programs of two stages need two equal ones.
        measure(name, rounds=args.rounds | 1, every=args.steps or PROGRAMS[BY_NAME[name]])
        for name in args.programs
    ]
    header = ["program", "lines", "loop ms/step", "by hand ms/step", "ratio", "middle half"]
    rows.append(["all", str(sum(int(row[1]) for row in rows)), "", "", "", ""])
    print(tables.table(header, rows))


if __name__ == "__main__":
    main()
