"""What only a GPU can show: NVIDIA's U-Net in every precision, with XLA and without, beside fit.

    python benchmarks/gpu.py --output=runs/gpu              # a GPU, some minutes
    python benchmarks/gpu.py --output=runs/gpu --small      # a trial on any machine

The network is that of UNet_Medical in NVIDIA's examples: 64 filters, depth 4, valid padding,
batches of 8 images of 572x572 pixels. Every row trains in a process of its own, so that memory and
settings are its own; data lie in memory. "float32" uses TF32 where the card has it, "float32
exact" does not; "as written" forbids TensorFlow to choose the layout of the channels (it takes
channels first where that is faster); "pipeline" trains from augmented slices and shows the share of
the time that it waited for them; "fit" is `model.fit`, "torch" the same network by PyTorch
(`torch_unet.py`: autocast, channels last), left out where that is not installed. Inference is one
image at a time and a batch, from an array to an array.

Writes gpu.json, gpu-training.txt and gpu-inference.txt to the folder of `--output`. NVIDIA publish
63 images/s in TF32 and 141 in mixed precision for training on an A100.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from rounds import machine

from unet_core.drawing import tables


@dataclasses.dataclass(frozen=True)
class Row:
    """How a network is trained.

    Attributes:
        precision: Of the network's layers.
        xla: Whether it is compiled with XLA.
        tf32: Whether float32 may be rounded to TF32.
        choose_layout: Whether TensorFlow may choose the layout of the channels.
        by: "loop", "fit", "torch", or "pipeline", the loop on augmented slices.
        recompute: Whether features are computed again in the backward pass.
    """

    precision: str
    xla: bool = False
    tf32: bool = True
    choose_layout: bool = True
    by: str = "loop"
    recompute: bool = False


ROWS = {
    "float32": Row("float32"),
    "float32 exact": Row("float32", tf32=False),
    "float32 as written": Row("float32", choose_layout=False),
    "float32 xla": Row("float32", xla=True),
    "float32 fit": Row("float32", by="fit"),
    "float32 torch": Row("float32", by="torch"),
    "float16": Row("float16"),
    "float16 as written": Row("float16", choose_layout=False),
    "float16 xla": Row("float16", xla=True),
    "float16 recompute": Row("float16", recompute=True),
    "float16 fit": Row("float16", by="fit"),
    "float16 torch": Row("float16", by="torch"),
    "bfloat16": Row("bfloat16"),
    "bfloat16 xla": Row("bfloat16", xla=True),
    "bfloat16 torch": Row("bfloat16", by="torch"),
    "float16 pipeline": Row("float16", by="pipeline"),
}
INFERENCE = ("float32", "float16", "bfloat16")
PERCENTILES = (50, 90, 95, 99)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is; `SMALL` is for a trial."""

    pixels: int = 572
    batch: int = 8
    base_filters: int = 64
    depth: int = 4
    warm_up: int = 5
    steps: int = 10
    rounds: int = 4
    predictions: int = 60


SMALL = Size(
    pixels=60, batch=2, base_filters=2, depth=2, warm_up=1, steps=2, rounds=2, predictions=3
)


def make_network(size: Size, precision: str):
    from unet_core.models import build

    settings = dict(depth=size.depth, base_filters=size.base_filters, padding="valid")
    return build.make_network(classes=2, precision=precision, **settings)


def cropped(masks, logits):
    """Returns the part of the masks [B, H, W] that the logits are of."""
    margin = (masks.shape[1] - logits.shape[1]) // 2
    return masks[:, margin : masks.shape[1] - margin, margin : masks.shape[2] - margin]


def make_images(size: Size):
    import numpy as np

    shape = (size.batch, size.pixels, size.pixels, 1)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def augmented(size: Size, *where):
    """A dataset callable: crops of synthetic slices, augmented as in `membrane.flags`."""
    from input_pipeline import InMemory, drawing_of, load_pairs

    from unet_core.data import pipeline
    from unet_core.data.augment import Recipe

    read = InMemory(load_pairs(None))
    drawing = drawing_of(Recipe.preset("nnunet"), size.pixels)
    samples = list(read.pairs)
    return pipeline.make_train_dataset(samples, read, drawing, *where, global_batch_size=size.batch)


def loop_of(row: Row, size: Size):
    """Returns a function that trains `steps` steps and returns the report."""
    import functools

    import keras
    import tensorflow as tf

    from unet_core import losses, training
    from unet_core.models.recomputation import Recomputed

    images, model = make_images(size), make_network(size, row.precision)
    in_memory = tf.data.Dataset.from_tensors((images, (images[..., 0] > 127).astype("uint8")))
    loop = training.Loop(
        Recomputed(model, size=size.pixels) if row.recompute else model,
        keras.optimizers.AdamW(1e-4),
        loss=lambda logits, batch: losses.cross_entropy(cropped(batch[1], logits), logits),
        jit_compile=row.xla,
        loss_scaling=row.precision == "float16",
    )
    data = functools.partial(augmented, size) if row.by == "pipeline" else None
    reports = loop.train(
        data or (lambda *_: in_memory.repeat().prefetch(2)),
        until_step=10**9,
        report_every_steps=size.steps,
    )
    return lambda: next(reports)


def fit_of(row: Row, size: Size):
    """Returns a function that trains `steps` steps by `model.fit`."""
    import keras
    import tensorflow as tf

    from unet_core import losses

    model = make_network(size, row.precision)

    def loss(masks, logits):
        return losses.cross_entropy(cropped(tf.cast(masks[..., 0], tf.int32), logits), logits)

    optimizer = keras.optimizers.AdamW(1e-4)
    if row.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, loss=loss, jit_compile=row.xla)
    images = make_images(size)
    masks = (images > 127).astype("uint8")
    data = tf.data.Dataset.from_tensors((images, masks)).repeat().prefetch(2)
    return lambda: model.fit(data, steps_per_epoch=size.steps, epochs=1, verbose=0, shuffle=False)


def memory_mb(kind: str) -> float | None:
    """Returns megabytes of the first GPU, "current" or "peak"; None without a GPU."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")[kind] / 2**20


def train(row: Row, size: Size) -> dict[str, Any]:
    """Returns the figures of one row, measured in this process."""
    if row.by == "torch":
        return train_by_torch(row, size)
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(row.tf32)
    tf.config.optimizer.set_experimental_options({"layout_optimizer": row.choose_layout})
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    start = time.perf_counter()
    run = (fit_of if row.by == "fit" else loop_of)(row, size)
    run()
    first = time.perf_counter() - start
    after_first, seconds, report = memory_mb("current"), [], None
    for _ in range(size.rounds):
        start = time.perf_counter()
        report = run()
        seconds.append(time.perf_counter() - start)
    found = figures(size, first, seconds, memory_mb("peak"))
    if after_first is not None:
        found["memory_growth_mb"] = memory_mb("current") - after_first
    if row.by != "fit":
        found["data_wait_share"] = report.data_wait_share
    return found


def train_by_torch(row: Row, size: Size) -> dict[str, Any]:
    """Returns the figures of one row of PyTorch, measured in this process."""
    import torch
    import torch_unet

    settings = argparse.Namespace(
        precision=row.precision,
        norm=False,
        valid=True,
        steps=size.steps,
        batch=size.batch,
        size=size.pixels,
        depth=size.depth,
        base_filters=size.base_filters,
    )
    start = time.perf_counter()
    run = torch_unet.make_rounds(settings)
    run()
    first = time.perf_counter() - start
    seconds = [run() for _ in range(size.rounds)]
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    return figures(size, first, seconds, peak)


def figures(
    size: Size, first: float, seconds: list[float], peak_mb: float | None
) -> dict[str, Any]:
    """Returns the figures of a row, those that not every row has as None."""
    step = statistics.median(seconds) / size.steps
    return {
        "images_per_second": size.batch / step,
        "ms_per_step": 1000 * step,
        "fastest_over_slowest": min(seconds) / max(seconds),
        "seconds_to_the_first_report": first,
        "peak_memory_mb": peak_mb,
        "memory_growth_mb": None,
        "data_wait_share": None,
    }


def infer(precision: str, size: Size) -> dict[str, Any]:
    """Returns latencies in milliseconds and megapixels/s by batch, measured in this process."""
    import numpy as np
    import tensorflow as tf

    from unet_core.inference.network import InferenceNetwork

    network = InferenceNetwork(make_network(size, precision)).layers
    run = tf.function(
        lambda images: network(images, training=False),
        input_signature=[tf.TensorSpec([None, None, None, 1], tf.uint8)],
    )
    found = {}
    for batch in (1, size.batch):
        images, seconds = make_images(size)[:batch], []
        for number in range(size.warm_up + size.predictions):
            start = time.perf_counter()
            run(images).numpy()
            if number >= size.warm_up:
                seconds.append(time.perf_counter() - start)
        latencies = np.percentile(seconds, PERCENTILES) * 1000
        found[str(batch)] = {
            **{f"p{p}_ms": float(ms) for p, ms in zip(PERCENTILES, latencies, strict=True)},
            "megapixels_per_second": images.size / 1e6 / float(np.median(seconds)),
        }
    return found


def in_a_process(what: str, small: bool) -> dict[str, Any]:
    """Measures a row or a precision in a process of its own; what failed has the key "failed"."""
    command = [sys.executable, __file__, f"--only={what}", *(["--small"] if small else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": "it took more than 300 s"}
    if done.returncode:
        # The last line of a traceback says what.
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def gpu_names() -> list[str]:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [str(detail.get("device_name", "unknown")) for detail in details]


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def training_table(rows: dict[str, dict[str, Any]]) -> str:
    header = ["training", "images/s", "ms/step", "fastest/slowest", "first report s", "peak MB"]
    header += ["growth MB", "data wait"]
    cells = [
        [name, *([found["failed"]] if "failed" in found else map(shown, found.values()))]
        for name, found in rows.items()
    ]
    return tables.table(header, [row + [""] * (len(header) - len(row)) for row in cells])


def inference_table(rows: dict[str, dict[str, Any]]) -> str:
    header = ["inference", "batch", *(f"p{p} ms" for p in PERCENTILES), "megapixels/s"]
    cells = []
    for name, found in rows.items():
        if "failed" in found:
            cells.append([name, found["failed"], *[""] * (len(header) - 2)])
            continue
        cells += [[name, batch, *map(shown, each.values())] for batch, each in found.items()]
    return tables.table(header, cells)


def measure_all(output: pathlib.Path, names: list[str], small: bool) -> bool:
    """Measures everything, prints and writes it; returns whether all went well."""
    output.mkdir(parents=True, exist_ok=True)
    size = SMALL if small else Size()
    print(machine(), ", ".join(gpu_names()), sep="; ", flush=True)
    found: dict[str, Any] = {"machine": machine(), "gpus": gpu_names()}
    found |= {"size": dataclasses.asdict(size), "training": {}, "inference": {}}
    for kind, of_kind in (("training", names), ("inference", list(INFERENCE))):
        for name in of_kind:
            start = time.perf_counter()
            what = name if kind == "training" else f"infer {name}"
            found[kind][name] = in_a_process(what, small)
            print(f"{kind}, {name}: {time.perf_counter() - start:.0f} s", flush=True)
            # After each, so that a machine that is taken back has left what there is.
            (output / "gpu.json").write_text(json.dumps(found, indent=1))
    for kind, table in (("training", training_table), ("inference", inference_table)):
        text = table(found[kind])
        print("", text, sep="\n")
        (output / f"gpu-{kind}.txt").write_text(text + "\n")
    return not any(
        "failed" in each for kind in ("training", "inference") for each in found[kind].values()
    )


def rows_here() -> list[str]:
    """Returns the rows whose packages are installed."""
    has_torch = importlib.util.find_spec("torch") is not None
    return [name for name, row in ROWS.items() if has_torch or row.by != "torch"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/gpu"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=rows_here())
    parser.add_argument("--small", action="store_true", help="a trial in the smallest size")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.only is None:
        sys.exit(0 if measure_all(args.output, args.rows, args.small) else 1)
    size = SMALL if args.small else Size()
    kind, _, precision = args.only.partition(" ")
    found = infer(precision, size) if kind == "infer" else train(ROWS[args.only], size)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
