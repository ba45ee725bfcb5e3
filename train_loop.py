"""Trains, evaluates and serves U-Nets.

    python train_loop.py --flagfile=membrane.flags
    python train_loop.py --mode=predict --run_dir=runs/membrane --input=my_slices --output_dir=my_masks
    python train_loop.py --mode=check_data --data_dir=data/mine --classes=0:background,255:nucleus

The door of the project: flags become one frozen config, and the run is told from top to bottom. Everything that acts
on the whole process (signals, devices, seeds, log levels) happens here and nowhere else.

Exit codes: 0 done, 2 something to mend (one message says what), 130 or 143 stopped by Ctrl-C or SIGTERM and saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging

from unet_core.config import RunConfig
from unet_core.errors import UserError

FLAGS = flags.FLAGS


def main(_: Sequence[str]) -> int:
    """Runs what the flags ask for and returns the exit code."""
    try:
        config = RunConfig(**{field.name: _flag_value(field) for field in dataclasses.fields(RunConfig)})
        _import_libraries()
        with _stop_signals() as stopped:
            MODES[config.mode](config, stopped)
        return 128 + stopped.signal if stopped.signal else 0
    except UserError as error:
        print(f"train_loop: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train_loop: stopped at once; the run goes on from its last checkpoint.", file=sys.stderr)
        return 130


def train(config: RunConfig, stopped: Callable[[], bool]) -> None:
    """Trains, evaluates the held-out images, predicts the test images; resumes a run that was interrupted."""
    import tensorflow as tf
    from unet_core import assembly, metrics, training
    from unet_core.data import folders, pipeline, stream
    from unet_core.data.classes import ClassMap
    from unet_core.reports.history import History
    from unet_core.run_directory import RunDirectory
    from unet_core.training import devices

    run = RunDirectory(_required(config, "run_dir"))
    classes = ClassMap.parse(config.classes)
    _check_monitor(config, classes)
    loss = assembly.make_loss(config, classes)
    _write_synthetic_data(config)
    survey = folders.load(_required(config, "data_dir"), classes, progress=_progress("Reading images"))
    training_samples, held_out = folders.split(survey.samples, folds=config.folds, fold=config.fold)
    stream.check_crop_size(training_samples, config.crop_size)
    strategy = _prepare_devices(config)
    pipeline.check_global_batch_size(config.global_batch_size, strategy.num_replicas_in_sync)
    print(f"{len(training_samples)} images to train on, {len(held_out)} held out, classes {classes}.")

    precision, reason = config.precision, "as asked"
    if precision == "auto":
        precision, reason = ("auto", "as this run began") if run.holds_run() else devices.choose_precision()
    config = run.agree(dataclasses.replace(config, precision=precision), survey.fingerprint)
    schedule = assembly.make_schedule(config)
    print(f"Precision {config.precision}: {reason}.")

    with run.locked():
        run.store(config, survey.fingerprint)
        with strategy.scope():
            model = assembly.make_network(config, classes)
            optimizer = assembly.make_optimizer(config)
        loop = training.Loop(
            model,
            optimizer,
            loss=lambda logits, batch: loss(batch[1], logits),
            metrics=assembly.count_confusion,
            strategy=strategy,
            schedule=schedule,
            clip_norm=config.clip_norm or None,
            loss_scaling=config.precision == "float16",
        )
        checkpoints = training.Checkpoints(
            run.checkpoints,
            loop,
            keep=config.keep_checkpoints,
            higher_is_better=config.monitor != "loss",
            metadata={"config": dataclasses.asdict(config), "classes": str(classes)},
        )
        start = checkpoints.restore()
        if start:
            print(f"Going on from step {start} of {run.path}.")

        train_data = functools.partial(
            pipeline.make_train_dataset,
            training_samples,
            seed=config.seed,
            crop_size=config.crop_size,
            recipe=assembly.make_recipe(config),
            global_batch_size=config.global_batch_size,
            generators=config.generators,
        )
        held_out_data = functools.partial(
            pipeline.make_image_dataset, held_out, global_batch_size=config.global_batch_size
        )
        score_names = ["loss", *metrics.scores([[0] * len(classes)] * len(classes), classes.names)]
        columns = ["step", *_TRAIN_COLUMNS, *(f"held_out/{name}" for name in score_names if held_out)]
        history = History(run.history, columns, resumed_at=start)
        with training.SummaryWriter(run.events, resumed_at=start) as summaries:
            if not start:
                _write_description(summaries, config, model)
            reports = loop.train(
                train_data,
                until_step=config.train_steps,
                report_every_steps=config.report_every_steps,
                pause_every_steps=[config.eval_every_steps, config.checkpoint_every_steps],
                should_stop=stopped,
            )
            with _bar(start, config.train_steps) as bar, contextlib.closing(reports):
                try:
                    for report in reports:
                        bar.show(report)
                        last = report.step >= config.train_steps
                        evaluates = held_out and (report.step % config.eval_every_steps == 0 or last)
                        sums = loop.evaluate(held_out_data, should_stop=stopped) if evaluates else None
                        row, score = _history_row(report), None
                        if sums:
                            found = _held_out_scores(sums, classes)
                            score = found[config.monitor]
                            row |= {f"held_out/{name}": value for name, value in found.items()}
                            _write_pictures(summaries, report.step, model, held_out[:2], classes)
                        if report.due or sums or last:
                            history.append(row)
                            summaries.scalars(report.step, row | _speeds(report))
                        if sums or last or stopped() or report.step % config.checkpoint_every_steps == 0:
                            summaries.flush()
                            checkpoints.save(score=score)
                except training.NonFiniteError as error:
                    raise _name_samples(error, config, training_samples) from error
                except tf.errors.ResourceExhaustedError as error:
                    raise _out_of_memory(error, config) from error
        if stopped():
            print(f"Stopped and saved at step {loop.step}. Start the same command again to go on.")
            return
        _finish(config, run, loop, held_out, classes, stopped)


def evaluate(config: RunConfig, stopped: Callable[[], bool]) -> None:
    """Scores a run's network: on the images it held out, or on all images of another data folder."""
    from unet_core.data import folders

    run, trained, model, classes, step = _open_run(config)
    data_dir = config.data_dir or trained.data_dir
    survey = folders.load(data_dir, classes, progress=_progress("Reading images"))
    samples = list(survey.samples)
    if survey.fingerprint == run.read()[1]:
        samples = folders.split(samples, folds=trained.folds, fold=trained.fold)[1]
        if not samples:
            raise UserError(f"{data_dir}: the run has trained on all of these images; give another --data_dir.")
    output_dir = pathlib.Path(config.output_dir) if config.output_dir else run.path
    with run.locked():
        _score(config, run, output_dir, model, step, samples, classes, stopped)


def predict(config: RunConfig, stopped: Callable[[], bool]) -> None:
    """Writes masks for images without truth."""
    from unet_core.inference.files import find_images

    run, trained, model, classes, step = _open_run(config)
    source = config.input or os.path.join(config.data_dir or trained.data_dir, "test")
    paths = find_images(source)
    print(f"Predicting {len(paths)} image(s) of {source} with the {config.weights} weights (step {step}).")
    _predict(config, model, paths, config.output_dir or run.predictions, classes, stopped)


def check_data(config: RunConfig, _: Callable[[], bool]) -> None:
    """Shows what a data folder holds and lists every problem."""
    from unet_core.data import folders
    from unet_core.data.classes import ClassMap

    classes = ClassMap.parse(config.classes)
    data_dir = _required(config, "data_dir")
    survey = folders.survey(data_dir, classes, progress=_progress("Reading images"))
    print(folders.describe(survey, classes))
    if survey.problems:
        raise UserError(folders.list_problems(data_dir, survey.problems))
    print("No problems found.")


MODES = {"train": train, "evaluate": evaluate, "predict": predict, "check_data": check_data}
_TRAIN_COLUMNS = ("train/loss", "train/rate", "train/gradient_norm", "train/loss_scale", "train/skipped_steps")


# Parts of the telling that would hide its thread.


def _open_run(config: RunConfig) -> tuple[Any, ...]:
    """Returns (run directory, its config, the network with its weights, class map, step)."""
    from unet_core import assembly, training
    from unet_core.data.classes import ClassMap
    from unet_core.run_directory import RunDirectory

    run = RunDirectory(_required(config, "run_dir"))
    trained, _ = run.read()
    _prepare_devices(config)
    classes = ClassMap.parse(trained.classes)
    precision = trained.precision if config.precision == "auto" else config.precision
    model = assembly.make_network(dataclasses.replace(trained, precision=precision), classes)
    step = training.load_weights(run.checkpoints, model, best=config.weights == "best")
    return run, trained, model, classes, step


def _finish(config, run, loop, held_out, classes, stopped) -> None:
    """Scores the held-out images and predicts the test images, unless that has been done for this step."""
    from unet_core import training
    from unet_core.inference.files import find_images

    if run.is_finished(loop.step):
        print(f"{run.path}: finished at step {loop.step}. To train longer, raise --train_steps.")
        return
    step = loop.step
    if config.weights == "best" and held_out:
        step = training.load_weights(run.checkpoints, loop.model, best=True)
    if held_out:
        _score(config, run, run.path, loop.model, step, held_out, classes, stopped)
    test = pathlib.Path(config.data_dir) / "test"
    if test.is_dir() and not stopped():
        _predict(config, loop.model, find_images(test), config.output_dir or run.predictions, classes, stopped)
    if not stopped():
        run.mark_finished(loop.step)
        print(f"Everything is in {run.path}; watch the curves with: tensorboard --logdir={run.events}")


def _score(config, run, output_dir, model, step, samples, classes, stopped) -> None:
    from unet_core.inference.evaluation import describe_scores, score_samples
    from unet_core.inference.predictor import Predictor

    result = score_samples(
        Predictor(model, tta=config.tta),
        samples,
        classes,
        output_dir / "held_out",
        progress=_progress("Scoring held-out images"),
        should_stop=stopped,
    )
    if result is not None:
        run.write_scores({"step": step, "weights": config.weights, "tta": config.tta, **result}, output_dir)
        print(f"\n{describe_scores(result, classes)}\n")


def _predict(config, model, paths, output_dir, classes, stopped) -> None:
    from unet_core.inference.files import predict_files
    from unet_core.inference.predictor import Predictor

    table, warnings = predict_files(
        Predictor(model, tta=config.tta),
        paths,
        output_dir,
        classes,
        save_probabilities=config.save_probabilities,
        progress=_progress("Predicting"),
        should_stop=stopped,
    )
    print(f"\nPredictions in {output_dir}\n{table}\n")
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)


def _write_synthetic_data(config: RunConfig) -> None:
    if config.synthetic_data and config.data_dir and not os.path.lexists(config.data_dir):
        from unet_core.data import synthetic

        print(f"{config.data_dir} does not exist: writing synthetic membrane slices there.")
        synthetic.write_dataset(config.data_dir, progress=_progress("Drawing slices"))


def _held_out_scores(sums, classes) -> dict[str, float]:
    from unet_core import metrics

    return {
        "loss": float(sums["loss"]) / int(sums["examples"]),
        **metrics.scores(sums["confusion"], classes.names),
    }


def _history_row(report) -> dict[str, float]:
    return {
        "step": report.step,
        "train/loss": report.loss,
        "train/rate": report.rate,
        "train/gradient_norm": report.gradient_norm,
        "train/loss_scale": report.loss_scale,
        "train/skipped_steps": report.skipped_steps,
    }


def _speeds(report) -> dict[str, float]:
    return {
        "speed/step_ms": report.step_ms,
        "speed/examples_per_sec": report.examples_per_sec,
        "speed/data_wait_share": report.data_wait_share,
    }


def _write_description(summaries, config: RunConfig, model) -> None:
    """Writes the config as text and the graph of the network."""
    import tensorflow as tf

    settings = "\n".join(f"    --{name}={_flag_text(value)}" for name, value in dataclasses.asdict(config).items())
    summaries.text(0, "config", settings)
    spec = tf.TensorSpec([None, None, None, model.input_shape[-1]], tf.uint8)
    summaries.graph(lambda images: model(images, training=False), spec)


def _write_pictures(summaries, step: int, model, samples, classes) -> None:
    """Writes input, truth, prediction and errors of a few held-out images."""
    from unet_core.inference.files import predicted_ids
    from unet_core.inference.predictor import Predictor
    from unet_core.reports import pictures

    predictor = Predictor(model)
    for sample in samples:
        ids = predicted_ids(predictor(sample.image))
        panels = {
            "input": sample.image[..., None],
            "truth": classes.values(sample.mask)[..., None],
            "prediction": classes.values(ids)[..., None],
            "errors": pictures.errors(sample.image, sample.mask, ids, of_class=0)[..., ::-1],
        }
        for name, panel in panels.items():
            summaries.images(step, f"held_out_{sample.name}/{name}", panel[None])


def _name_samples(error, config: RunConfig, samples) -> UserError:
    from unet_core.data import stream

    names = stream.names_of_batch(samples, seed=config.seed, step=error.step, size=config.global_batch_size)
    return UserError(
        f"{error} Its samples were drawn from {', '.join(names)}. Lower --learning_rate, set --clip_norm, or try "
        "--precision=float32; the run goes on from its last checkpoint."
    )


def _out_of_memory(error, config: RunConfig) -> UserError:
    return UserError(
        f"The device ran out of memory ({error.message.splitlines()[0]}). Lower --global_batch_size "
        f"({config.global_batch_size}), --crop_size ({config.crop_size}) or --base_filters ({config.base_filters})."
    )


def _check_monitor(config: RunConfig, classes) -> None:
    from unet_core import metrics

    known = ["loss", *metrics.scores([[0] * len(classes)] * len(classes), classes.names)]
    if config.monitor not in known:
        raise UserError(f"`monitor` ({config.monitor!r}) must be one of {', '.join(known)}.")


def _required(config: RunConfig, name: str) -> str:
    value = getattr(config, name)
    if not value:
        raise UserError(f"--{name} is missing; it is needed for --mode={config.mode}.")
    return value


# The screen.


def _progress(title: str) -> Callable:
    import tqdm

    return functools.partial(tqdm.tqdm, desc=title, leave=False, dynamic_ncols=True)


class _bar:
    """The progress bar of training, fed with reports."""

    def __init__(self, start: int, total: int):
        import tqdm

        self._bar = tqdm.tqdm(
            total=total, initial=start, desc="Training", unit="step", dynamic_ncols=True, disable=start >= total
        )

    def __enter__(self) -> _bar:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def show(self, report) -> None:
        self._bar.set_postfix_str(
            f"loss {report.loss:.4f}, rate {report.rate:.2g}, {report.examples_per_sec:.1f} images/s, "
            f"data wait {report.data_wait_share:.1%}"
        )
        self._bar.update(report.step - self._bar.n)


# The process: flags, libraries, devices, signals.


def _define_flags() -> None:
    for field in dataclasses.fields(RunConfig):
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        kind = field.type.split(" ")[0]
        if choices:
            flags.DEFINE_enum(field.name, field.default, list(choices), help_text)
        elif kind.startswith("tuple"):
            flags.DEFINE_list(field.name, [str(value) for value in field.default], help_text)
        else:
            define = {
                "bool": flags.DEFINE_boolean,
                "int": flags.DEFINE_integer,
                "float": flags.DEFINE_float,
                "str": flags.DEFINE_string,
            }[kind]
            define(field.name, field.default, help_text)


def _flag_value(field: dataclasses.Field) -> Any:
    value = FLAGS[field.name].value
    if not field.type.startswith("tuple"):
        return value
    convert = {"tuple[int": int, "tuple[float": float, "tuple[str": str}[field.type.split(",")[0]]
    try:
        return tuple(convert(item) for item in value)
    except ValueError:
        raise UserError(f"`{field.name}` ({','.join(value)}) must be numbers separated by commas.") from None


def _flag_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags, or answers `--help` (0) and mistakes (2) at once, which absl does otherwise."""
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        print(f"{__doc__}\nFlags:\n{FLAGS.module_help(sys.modules[__name__])}")
        sys.exit(0)
    try:
        rest = FLAGS(argv)
    except (flags.Error, OSError) as error:
        print(f"train_loop: {error} See --help.", file=sys.stderr)
        sys.exit(2)
    if rest[1:]:
        print(f"train_loop: unexpected argument {rest[1]!r}; flags begin with --. See --help.", file=sys.stderr)
        sys.exit(2)
    return rest


def _import_libraries() -> None:
    """Imports TensorFlow, Keras and OpenCV, their start-up noise shown only if one of them fails."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise UserError(f"KERAS_BACKEND is {backend!r}; this program needs tensorflow. Unset it, or set it to that.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _held_back_noise():
        try:
            import cv2
        except ImportError as error:
            raise UserError(
                f"OpenCV cannot be loaded ({error}). On a machine without a screen, install "
                "opencv-python-headless in place of opencv-python."
            ) from error
        import keras
        import tensorflow as tf

        tf.config.list_physical_devices()
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"Keras is set up for {keras.backend.backend()!r}; run with KERAS_BACKEND=tensorflow.")
    # Samples are made in several threads already; OpenCV's own would stand in their way.
    cv2.setNumThreads(1)
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def _held_back_noise() -> Iterator[None]:
    """Sends what native code writes to standard error to a file, shown only if the block fails.

    TF_CPP_MIN_LOG_LEVEL does not silence the lines written before logging is set up (TensorFlow 2.21).
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            noise.seek(0)
            os.write(screen, noise.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)


def _prepare_devices(config: RunConfig):
    """Sets up devices, seeds and determinism for the whole process and returns the strategy."""
    import keras
    import tensorflow as tf
    from unet_core.training import devices

    devices.split_device(config.logical_devices)
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    return devices.make_strategy(config.strategy, config.devices)


class _Stopped:
    """Whether, and by which signal, the run has been asked to stop."""

    signal = 0

    def __call__(self) -> bool:
        return bool(self.signal)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stopped]:
    """Turns the first Ctrl-C or SIGTERM into a request; the second Ctrl-C stops at once."""
    stopped = _Stopped()

    def request(number, _):
        stopped.signal = number
        print("\nStopping: finishing the current call and saving.", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def console() -> None:
    """The console command."""
    app.run(main, flags_parser=_parse_flags)


_define_flags()

if __name__ == "__main__":
    console()
