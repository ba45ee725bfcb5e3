"""Steps per second on one device, on several and on workers, all with the same global batch.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --global_batch=16 --size=256 --base_filters=64

"mirrored:2" is one process with two devices, "multi_worker:2" two processes with one device each,
joined through 127.0.0.1. On GPUs 1, 2, 4, ... of those there are take part, and the table is the
scaling curve of one host; a GPU must hold the whole global batch, and more, because all processes
stay alive. Without a GPU the CPU is split into logical devices: all replicas then share the same
cores, so the table shows what replicas cost, not what they gain.

Each trains a U-Net with AdamW from one batch that lies in memory and repeats. The rounds of all are
interleaved. "steps/s" is the median of the rounds, and the column after it the median of the
rounds' ratios to the first configuration. "reduction" is the time of one all-reduce of tensors like
the network's variables, measured alone, over the time of a step. It is an upper bound of what
reduction adds to a step, because on GPUs it may overlap the backward pass; but the time for which
replicas wait for the slowest one is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing.connection
import os
import pathlib
import queue
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf
from rounds import machine, median_ratio, seconds_per_round

from unet_core import losses, training
from unet_core.drawing import tables
from unet_core.models.build import make_network
from unet_core.training import devices

REDUCTIONS = 10  # In one call, so that calling costs nothing.


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A strategy and its number of replicas."""

    strategy: str
    replicas: int

    @classmethod
    def parse(cls, text: str) -> Configuration:
        found = re.fullmatch(r"(mirrored|multi_worker):([1-9]\d*)", text)
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} is not like mirrored:2 or multi_worker:2")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.strategy}:{self.replicas}"

    @property
    def processes(self) -> int:
        return self.replicas if self.strategy == "multi_worker" else 1


@dataclasses.dataclass(frozen=True)
class Running:
    """The processes of one configuration, what they write to stderr, and their answers so far."""

    configuration: Configuration
    processes: list[subprocess.Popen]
    errors: IO[bytes]
    answers: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def run_round(self) -> None:
        """Has every process run one round and keeps the answer of the first.

        Workers wait for one another at every step, so they take equally long.
        """
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"round\n")
        answers = {process.stdout: b"" for process in self.processes}
        while waiting := [stdout for stdout, line in answers.items() if not line]:
            for stdout in multiprocessing.connection.wait(waiting):
                answers[stdout] = stdout.readline()
                if not answers[stdout]:
                    self.errors.seek(0)
                    last = self.errors.read().decode(errors="replace").splitlines()[-20:]
                    raise SystemExit("\n".join([*last, f"{self.configuration} ended early."]))
        self.answers.append(json.loads(answers[self.processes[0].stdout]))


def start(
    args: argparse.Namespace, configuration: Configuration, stack: contextlib.ExitStack
) -> Running:
    """Starts the processes of one configuration; they end with `stack`, or with this process."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(configuration.processes)]
    errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    flags = [f"--{name}={getattr(args, name)}" for name in ("steps", "global_batch", "size")]
    flags += [f"--base_filters={args.base_filters}", f"--configurations={configuration}"]
    processes = []
    for index in range(configuration.processes):
        task = {"type": "worker", "index": index}
        tf_config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        process = subprocess.Popen(
            [sys.executable, __file__, *flags, f"--child={index}"],
            env=os.environ | ({"TF_CONFIG": tf_config} if "worker" in str(configuration) else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        processes.append(process)
    return Running(configuration, processes, errors)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def default_configurations(gpus: int) -> list[Configuration]:
    counts = [2**power for power in range((gpus or 4).bit_length())]
    workers = [count for count in (1, 2) if count <= (gpus or 2)]
    return [
        *(Configuration("mirrored", count) for count in counts),
        *(Configuration("multi_worker", count) for count in workers),
    ]


def measure(args: argparse.Namespace) -> list[list[str]]:
    """Returns the rows of the table, everything measured in the same rounds."""
    with contextlib.ExitStack() as stack:
        running = {str(one): start(args, one, stack) for one in args.configurations}
        variants = {name: one.run_round for name, one in running.items()}
        seconds_per_round(variants, rounds=args.rounds)
    # The first answer is that of the unmeasured round, which compiles.
    found = {name: one.answers[1:] for name, one in running.items()}
    steps = {name: [answer["step_ms"] for answer in rounds] for name, rounds in found.items()}
    first = next(iter(steps.values()))
    rows = []
    for name, rounds in found.items():
        share = statistics.median(answer["reduction_ms"] / answer["step_ms"] for answer in rounds)
        speed = 1000 / statistics.median(steps[name])
        ratio = median_ratio(first, steps[name])
        rows.append([name, f"{speed:.2f}", f"{ratio:.2f}", f"{share:.1%}"])
    return rows


def answer_rounds(args: argparse.Namespace) -> None:
    """Runs one round for every line on standard input, and answers with a line of JSON."""
    asked = lines_until_parent_ends()
    (configuration,) = args.configurations
    strategy = make_strategy(configuration, args.child)
    with strategy.scope():
        model = make_network(classes=2, base_filters=args.base_filters)
        optimizer = keras.optimizers.AdamW(1e-4)
    loop = training.Loop(
        model,
        optimizer,
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
        strategy=strategy,
        seconds_per_call=1e9,
    )
    rows = args.global_batch // configuration.replicas
    shape = (rows, args.size, args.size, 1)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    batch = images, (images[..., 0] > 127).astype(np.uint8)
    reports = loop.train(
        lambda *_: tf.data.Dataset.from_tensors(batch).repeat().prefetch(2),
        until_step=10**9,
        report_every_steps=args.steps,
    )
    reduce = reduction_of(model, strategy)
    while True:
        asked.get()
        step_ms = next(reports).step_ms
        before = time.perf_counter()
        reduce()
        reduction_ms = 1000 * (time.perf_counter() - before) / REDUCTIONS
        print(json.dumps({"step_ms": step_ms, "reduction_ms": reduction_ms}), flush=True)


def lines_until_parent_ends() -> queue.SimpleQueue:
    """Returns the lines of standard input as they come.

    At its end, which is that of the parent, this process ends whatever it is doing: it may be
    waiting for another worker.
    """
    lines: queue.SimpleQueue = queue.SimpleQueue()

    def read():
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def make_strategy(configuration: Configuration, worker: int) -> tf.distribute.Strategy:
    gpus = tf.config.list_physical_devices("GPU")
    mirrored = configuration.strategy == "mirrored"
    if gpus:
        # Processes share GPUs.
        devices.limit_devices(memory_growth=True)
        if not mirrored:
            tf.config.set_visible_devices(gpus[worker], "GPU")
    elif mirrored:
        devices.limit_devices(logical_devices=configuration.replicas)
    return devices.make_strategy(
        configuration.strategy, range(configuration.replicas) if mirrored else ()
    )


def reduction_of(model: keras.Model, strategy: tf.distribute.Strategy) -> Callable[[], None]:
    """Returns a function that all-reduces tensors like the model's variables `REDUCTIONS` times.

    It does nothing if there is one replica, as the loop reduces nothing then.
    """
    if strategy.num_replicas_in_sync == 1:
        return lambda: None
    own_of_replica = functools.partial(
        tf.Variable,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )
    with strategy.scope():
        values = [own_of_replica(tf.zeros(v.shape)) for v in model.trainable_variables]

    def replace_by_sums():
        # Each sum is kept and is what the next one adds up, so TensorFlow can leave none out.
        context = tf.distribute.get_replica_context()
        own = [tf.identity(value) for value in values]
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
        for value, total in zip(values, sums, strict=True):
            value.assign(total)

    @tf.function
    def reduce():
        for _ in tf.range(REDUCTIONS):
            strategy.run(replace_by_sums)
        return tf.constant(0)

    return lambda: reduce().numpy()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpus = len(tf.config.list_physical_devices("GPU"))
    parser.add_argument(
        "--configurations",
        nargs="+",
        type=Configuration.parse,
        default=default_configurations(gpus),
        help="such as mirrored:1 mirrored:2 multi_worker:2; by default all that are possible here",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--global_batch", type=int, default=16, help="examples per step")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--base_filters", type=int, default=32)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for one in args.configurations:
        if args.global_batch % one.replicas:
            parser.error(f"--global_batch={args.global_batch} does not divide among {one}")
        if gpus and one.replicas > gpus:
            parser.error(f"{one} needs {one.replicas} GPUs, and there are {gpus}")
    if args.child is not None:
        answer_rounds(args)
        return
    print(machine())
    print(
        f"global batch {args.global_batch}, {args.size} px, base {args.base_filters}, "
        f"{args.rounds} rounds of {args.steps} steps"
    )
    if not gpus:
        print("No GPU: all replicas share the same cores. This shows overhead, not scaling.")
    header = ["replicas", "steps/s", f"x {args.configurations[0]}", "reduction"]
    print(tables.table(header, measure(args)))


if __name__ == "__main__":
    main()
