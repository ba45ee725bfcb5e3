"""Steps per second on several devices and workers with one global batch, and what reduction takes.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --global_batch=64 --size=512 --base_filters=64

On GPUs it takes 1, 2, 4, ... of those there are, and the table is the scaling curve. Without a GPU
it splits the CPU into logical devices, and two workers share it too: all replicas then share the
same cores, so the table shows what replicas cost, not what they gain.

Every configuration is a process of its own (a worker each), kept alive; the rounds of all are
interleaved. "reduction" is the time of adding up one set of gradients over all replicas, alone,
over the time of a step. It is an upper bound: in a step, part of it hides behind the backward pass.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--global_batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--base_filters", type=int, default=32)
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        measure_when_told(args, *args.child)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Runs all configurations in interleaved rounds and prints the table."""
    from rounds import machine

    from unet_core.reports import tables

    gpus = _count_gpus()
    counts = [n for n in (1, 2, 4, 8, 16) if n <= (gpus or 4) and args.global_batch % n == 0]
    names = {f"{n} device{'s' * (n > 1)}": (n, 1) for n in counts}
    names["2 workers"] = (max(1, gpus // 2), 2)
    with contextlib.ExitStack() as stack:
        running = {name: _start(args, *kind, stack) for name, kind in names.items()}
        for processes in running.values():
            _round(processes)
        found = {name: [] for name in names}
        for number in range(args.rounds):
            for name in list(names)[:: 1 if number % 2 == 0 else -1]:
                found[name].append(_round(running[name]))
    base = statistics.median(seconds for seconds, _ in found[next(iter(names))])
    rows = []
    for name, rounds in found.items():
        seconds = statistics.median(seconds for seconds, _ in rounds)
        share = statistics.median(reduction / step for step, reduction in rounds)
        rows.append([name, f"{1 / seconds:.2f}", f"{base / seconds:.2f}", f"{share:.1%}"])
    print(machine())
    print(f"global batch {args.global_batch}, {args.size} px, base {args.base_filters}, float32")
    if not gpus:
        print("No GPU: all replicas share the same cores. This shows overhead, not scaling.")
    print(tables.table(["", "steps/s", "to one device", "reduction"], rows))


def measure_when_told(args: argparse.Namespace, devices: int, workers: int) -> None:
    """Answers every line on standard input with the seconds of a step and of one reduction."""
    import keras
    import numpy as np
    import tensorflow as tf

    from unet_core import losses, training
    from unet_core.models.unet import make_unet
    from unet_core.training import devices as device_room

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[:devices], "GPU")
    else:
        device_room.limit_devices(logical_devices=devices)
    kind = "multi_worker" if workers > 1 else "mirrored" if devices > 1 else "none"
    strategy = device_room.make_strategy(kind)
    with strategy.scope():
        model = make_unet(classes=2, base_filters=args.base_filters)
        optimizer = keras.optimizers.AdamW(1e-4)
    loop = training.Loop(
        model,
        optimizer,
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
        strategy=strategy,
        seconds_per_call=1e9,
    )
    rows = args.global_batch // strategy.num_replicas_in_sync
    images = np.random.default_rng(0).integers(0, 256, (rows, args.size, args.size, 1), np.uint8)
    batch = images, (images[..., 0] > 127).astype(np.uint8)
    reports = loop.train(
        lambda *_: tf.data.Dataset.from_tensors(batch).repeat().prefetch(2),
        until_step=10**9,
        report_every_steps=args.steps,
    )

    @tf.function
    def reduce(times):
        def once(token):
            def replica():
                context = tf.distribute.get_replica_context()
                # The token keeps the sums of one turn from being those of the turn before.
                values = [v.value + token for v in model.trainable_variables]
                sums = context.all_reduce(tf.distribute.ReduceOp.SUM, values)
                return tf.add_n([tf.reduce_sum(value[..., :1]) for value in sums]) * 0

            return strategy.experimental_local_results(strategy.run(replica))[0]

        def turn(number, token):
            return number + 1, once(token)

        more = lambda number, _: number < times  # noqa: E731
        return tf.while_loop(more, turn, (0, 0.0), parallel_iterations=1)[1]

    for _ in sys.stdin:
        start = time.perf_counter()
        next(reports)
        step = (time.perf_counter() - start) / args.steps
        reduction = 0.0
        if strategy.num_replicas_in_sync > 1:
            start = time.perf_counter()
            reduce(tf.constant(args.steps)).numpy()
            reduction = (time.perf_counter() - start) / args.steps
        print(json.dumps([step, reduction]), flush=True)
    os._exit(0)  # The other worker may have gone already.


def _start(
    args: argparse.Namespace, devices: int, workers: int, stack: contextlib.ExitStack
) -> list[subprocess.Popen]:
    """Starts the process of one configuration, or its workers; they end with `stack`."""
    addresses = [f"127.0.0.1:{_free_port()}" for _ in range(workers)]
    processes = []
    for index in range(workers):
        task = {"type": "worker", "index": index}
        tf_config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        settings = ("rounds", "steps", "global_batch", "size", "base_filters")
        flags = [f"--{name}={getattr(args, name)}" for name in settings]
        process = subprocess.Popen(
            [sys.executable, __file__, *flags, "--child", str(devices), str(workers)],
            env=os.environ | ({"TF_CONFIG": tf_config} if workers > 1 else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        stack.callback(process.kill)
        processes.append(process)
    return processes


def _round(processes: list[subprocess.Popen]) -> tuple[float, float]:
    """Returns the seconds of a step and of a reduction, of the slower worker."""
    for process in processes:
        process.stdin.write("round\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in processes]
    if not all(answers):
        raise SystemExit("A configuration ended early; run it by hand with --child to see why.")
    return max(tuple(json.loads(answer)) for answer in answers)


def _count_gpus() -> int:
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    main()
