"""Trains, evaluates and serves U-Nets.

    python train_loop.py --flagfile=membrane.flags
    python train_loop.py --mode=predict --run_dir=runs/membrane --input=my_slices
    python train_loop.py --mode=check_data --data_dir=my_data --classes=0:background,255:nucleus

The door of the project: flags become one frozen config, and the run is told from top to bottom.

Exit codes: 0 done; 2 something is wrong, as one message says; 128 and the number of the signal
(130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 129 SIGHUP) stopped by it, and saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags

from unet_core.config import RunConfig, binding_settings
from unet_core.errors import UserError
from unet_core.runs import process

if TYPE_CHECKING:
    from unet_core.run_directory import RunDirectory
    from unet_core.runs.dataset import DataSet

FLAGS = flags.FLAGS


def main(_: Sequence[str]) -> int:
    """Runs what the flags ask for and returns the exit code."""
    stopped = process.StopRequest()
    try:
        config = RunConfig(
            **{field.name: _flag_value(field) for field in dataclasses.fields(RunConfig)}
        )
        process.import_libraries()
        with process.stop_signals(stopped):
            MODES[config.mode](config, stopped)
        return 128 + stopped.signal if stopped.signal else 0
    except UserError as error:
        print(f"train_loop: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"train_loop: {error.filename or 'a file'}: {error.strerror or error}. Make room or "
            "permit access, and start the same command again: a run goes on from its last "
            "checkpoint.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        # By name: TensorFlow may not be loaded yet.
        if type(error).__name__ not in ("ResourceExhaustedError", "MemoryError"):
            raise
        print(
            f"train_loop: memory ran out ({str(error).splitlines()[0] if str(error) else 'host'}). "
            "Use smaller windows, such as --window_px=512, or a machine with more.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "train_loop: stopped at once; the run goes on from its last checkpoint.",
            file=sys.stderr,
        )
        return 128 + (stopped.signal or signal.SIGINT)


def train(config: RunConfig, stopped: process.StopRequest) -> None:
    """Trains, or goes on with, one run or one for each fold."""
    if config.fold != "all":
        _train(config, stopped)
        return
    _required(config, "run_dir")
    for fold in _folds(config):
        print(f"Fold {fold.fold} of 0 to {config.folds - 1}: {fold.run_dir}")
        _train(fold, stopped)
        if stopped():
            return
    _write_fold_table(config)


def _train(config: RunConfig, stopped: process.StopRequest) -> None:
    """Trains, or goes on with a run; scores the held-out images; predicts the test images."""
    import tensorflow as tf

    from unet_core import assembly, training
    from unet_core.data import pipeline, stream
    from unet_core.reports.training_logger import TrainingLogger, score_names, scores_of
    from unet_core.run_directory import RunDirectory
    from unet_core.runs import dataset
    from unet_core.runs.progress import progress_bar
    from unet_core.training import devices

    # Everything that can be wrong is found before the run folder is touched.
    run = RunDirectory(_required(config, "run_dir"))
    classes = dataset.make_classes(config)
    assembly.make_loss(config, classes)
    drawing = dataset.make_sampling(config, assembly.make_recipe(config))
    if config.monitor not in score_names(classes):
        raise UserError(
            f"`monitor` ({config.monitor!r}) must be one of {', '.join(score_names(classes))}."
        )
    if config.object_class:
        classes.index(config.object_class)
    _write_synthetic_data(config)
    _required(config, "data_dir")
    data = dataset.DataSet.open(config, progress=progress_bar, memory_path=run.known_masks)
    data.check()
    training_samples, held_out = data.split()
    stream.check_crop_size(data.shapes(training_samples), config.crop_size)
    _write_preview(config, data, training_samples, drawing)
    fingerprint = data.fingerprint()
    strategy = process.prepare_devices(config, stopped)
    workers = training.Workers(strategy)
    replicas = strategy.num_replicas_in_sync
    pipeline.check_global_batch_size(config.global_batch_size, replicas, config.micro_batches)
    if config.jit_compile and config.batch_norm and replicas > 1:
        raise UserError(
            "`jit_compile` cannot be combined with `batch_norm` on several replicas: XLA cannot "
            "compile statistics that replicas share. Leave one of them out."
        )
    config, reason = _resolve(config, run, data, training_samples, fingerprint)
    data.weigh(config.class_weights)
    loss = assembly.make_loss(dataclasses.replace(config, class_balance="none"), classes)
    schedule = assembly.make_schedule(config)
    print(
        f"{len(training_samples)} images to train on, {len(held_out)} held out; classes {classes}."
    )
    print(f"Precision {config.precision}: {reason}. {devices.describe_devices(strategy)}.")
    if not workers.is_chief:
        print(
            f"Worker {workers.number} of {workers.count}: worker 0 shows the progress and writes."
        )

    with workers.watched(), run.locked() if workers.is_chief else contextlib.nullcontext():
        settings = {name: getattr(config, name) for name in binding_settings()}
        workers.check_same(settings=json.dumps(settings), data=fingerprint)
        workers.check_folder(run.path)
        if workers.is_chief:
            run.store(config, fingerprint)
            data.memory.store()
        with strategy.scope():
            model = assembly.make_network(config, classes)
            optimizer = assembly.make_optimizer(config)
        loop = training.Loop(
            model,
            optimizer,
            loss=lambda logits, batch: loss(batch[1], logits, *batch[2:]),
            metrics=assembly.count_confusion,
            strategy=strategy,
            schedule=schedule,
            clip_norm=config.clip_norm or None,
            loss_scaling=config.precision == "float16",
            micro_batches=config.micro_batches,
            ema_decay=config.ema_decay or None,
            jit_compile=config.jit_compile,
        )
        checkpoints = training.Checkpoints(
            run.checkpoints,
            loop,
            keep=config.keep_checkpoints,
            higher_is_better=config.monitor != "loss",
            monitor=config.monitor,
            metadata={"config": dataclasses.asdict(config), "classes": str(classes)},
        )
        for leftover in checkpoints.unfinished():
            print(f"{leftover}: skipped, a save that was interrupted.")
        start = checkpoints.restore()
        workers.check_same(checkpoints=str(start))
        if start:
            print(f"Going on from step {start} of {run.path}.")
        if config.schedule_steps <= start < config.train_steps:
            print(
                f"The schedule ended at step {config.schedule_steps}: the learning rate stays "
                f"at its end. To lay it out anew, give --schedule_steps={config.train_steps}."
            )

        failures: list[UserError] = []
        train_data = functools.partial(
            pipeline.make_train_dataset,
            training_samples,
            data.read,
            drawing,
            global_batch_size=config.global_batch_size,
            micro_batches=config.micro_batches,
            generators=config.generators,
            failures=failures,
        )
        held_out_data = functools.partial(
            pipeline.make_image_dataset,
            data.shapes(held_out),
            data.read,
            global_batch_size=config.global_batch_size,
            failures=failures,
        )
        reports = loop.train(
            train_data,
            until_step=config.train_steps,
            report_every_steps=config.report_every_steps,
            pause_every_steps=[config.eval_every_steps, config.checkpoint_every_steps],
            should_stop=stopped,
        )
        stopping = False
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(reports))
            if workers.is_chief:
                read_outs = stack.enter_context(
                    TrainingLogger(run, config, classes, held_out=bool(held_out), resumed_at=start)
                )
                if not start:
                    read_outs.write_description(config, model)
            try:
                for report in reports:
                    stopping = report.stopping
                    last = report.step >= config.train_steps
                    evaluates = last or report.step % config.eval_every_steps == 0
                    saves = last or stopping or report.step % config.checkpoint_every_steps == 0
                    scores = {}
                    if workers.is_chief:
                        read_outs.show(report)
                    if held_out and evaluates:
                        with loop.averaged_weights():
                            scores = scores_of(loop.evaluate(held_out_data), classes)
                            if workers.is_chief:
                                read_outs.write_pictures(
                                    report.step, model, held_out[:2], data.read
                                )
                    if workers.is_chief and (report.due or scores or last):
                        read_outs.write(report, scores)
                    if workers.is_chief and (saves or scores):
                        read_outs.flush()
                        checkpoints.save(score=scores.get(config.monitor))
            except training.NonFiniteError as error:
                names = stream.names_of_batch(
                    training_samples, drawing, step=error.step, size=config.global_batch_size
                )
                first = error.step * config.global_batch_size
                raise UserError(
                    f"{error} Its samples {first} to {first + len(names) - 1} were drawn from "
                    f"{', '.join(names)}. Lower "
                    "--learning_rate, set --clip_norm, or try --precision=float32; the run goes on "
                    "from its last checkpoint."
                ) from error
            except (UserError, tf.errors.OpError) as error:
                # The loop and TensorFlow say less of what a generator has raised.
                if failures:
                    raise failures[0] from error
                if not isinstance(error, tf.errors.ResourceExhaustedError):
                    raise
                raise UserError(
                    f"The device ran out of memory ({error.message.splitlines()[0]}). Lower "
                    f"--global_batch_size ({config.global_batch_size}), --crop_size "
                    f"({config.crop_size}) or --base_filters ({config.base_filters})."
                ) from error
        if stopping:
            # Perhaps it was another worker that was asked to stop.
            stopped.signal = stopped.signal or signal.SIGTERM
            print(f"Stopped and saved at step {loop.step}. Start the same command again to go on.")
        elif workers.is_chief:
            samples = training_samples, held_out
            _finish(config, run, loop, samples, data.read, stopped)
        else:
            print(f"Trained to step {loop.step}; worker 0 scores and predicts.")


def evaluate(config: RunConfig, stopped: process.StopRequest) -> None:
    """Scores the network of a run, or of each fold, on the images it held out; or that of a run on
    all images of another data folder.
    """
    if config.fold != "all":
        _evaluate(config, stopped)
        return
    _required(config, "run_dir")
    for fold in _folds(config):
        print(f"Fold {fold.fold} of 0 to {config.folds - 1}: {fold.run_dir}")
        _evaluate(fold, stopped)
        if stopped():
            return
    _write_fold_table(config)


def _evaluate(config: RunConfig, stopped: process.StopRequest) -> None:
    from unet_core.run_directory import RunDirectory
    from unet_core.runs import dataset
    from unet_core.runs.progress import progress_bar

    run = RunDirectory(_required(config, "run_dir"))
    trained = _open_trained(config, run.path, stopped)
    where = config if config.data_dir else trained.config
    names = ("data_dir", "layout", "image_folder", "mask_folder", "mask_suffix", "group_pattern")
    settings = dataclasses.replace(trained.config, **{n: getattr(where, n) for n in names})
    data = dataset.DataSet.open(settings, progress=progress_bar, memory_path=run.known_masks)
    data.check()
    training_samples, samples = [], list(data.samples)
    if data.fingerprint() == run.read()[1]:
        training_samples, samples = data.split()
        if not samples:
            raise UserError(
                f"{settings.data_dir}: the run has trained on all of these images; give another "
                "--data_dir."
            )
    elif not config.output_dir:
        raise UserError(
            f"{settings.data_dir}: is not what the run was trained and scored on; give "
            "--output_dir, so that the run's own scores stay."
        )
    output_dir = pathlib.Path(config.output_dir) if config.output_dir else run.path
    with contextlib.nullcontext() if config.output_dir else run.locked():
        samples = training_samples, samples
        _score(config, run, output_dir, trained, samples, data.read, stopped)


def predict(config: RunConfig, stopped: process.StopRequest) -> None:
    """Writes masks for images without truth, for a video or for what a camera sees."""
    from unet_core.data import layouts
    from unet_core.outputs import video
    from unet_core.run_directory import RunDirectory
    from unet_core.runs import dataset

    run = RunDirectory(_required(config, "run_dir"))
    trained = _open_trained(config, run.path, stopped)
    source = config.input or dataset.test_folder(config if config.data_dir else trained.config)
    if source is None:
        raise UserError("--input is missing: the data folder holds no test images.")
    output_dir = pathlib.Path(config.output_dir or run.predictions)
    how = f"with the {config.weights} weights (step {trained.step})"
    if video.is_video(source) or video.camera_number(str(source)) is not None:
        print(f"Predicting {source} {how}.")
        _predict_video(config, trained, source, output_dir, stopped)
        return
    sources = layouts.find_images(source)
    print(f"Predicting {len(sources)} image(s) of {source} {how}.")
    overwrite = config.overwrite
    failures = _predict(config, trained, sources, output_dir, stopped, overwrite=overwrite)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(sources)} image(s) could not be predicted; the others are "
            "done.\n  " + "\n  ".join(failures)
        )


def export(config: RunConfig, stopped: process.StopRequest) -> None:
    """Writes the network in forms that other programs read."""
    from unet_core.data.intensities import Scaling
    from unet_core.export.export import export as write_export
    from unet_core.run_directory import RunDirectory

    run = RunDirectory(_required(config, "run_dir"))
    trained = _open_trained(config, run.path, stopped)
    output_dir = pathlib.Path(config.output_dir or run.path / "export")
    precision = None if config.precision == "auto" else config.precision
    write_export(
        trained.model,
        output_dir,
        classes=trained.classes,
        scaling=Scaling.parse(trained.config.intensities),
        settings=dataclasses.asdict(trained.config),
        step=trained.step,
        formats=config.formats,
        precision=precision,
    )
    print(f"Exported step {trained.step} as {', '.join(config.formats)} to {output_dir}.")


def check_data(config: RunConfig, _: process.StopRequest) -> None:
    """Shows what a data folder holds and lists every problem."""
    from unet_core import assembly
    from unet_core.data import splits, survey
    from unet_core.run_directory import RunDirectory
    from unet_core.runs import dataset
    from unet_core.runs.progress import progress_bar

    data_dir = _required(config, "data_dir")
    run = RunDirectory(config.run_dir) if config.run_dir else None
    memory_path = run.known_masks if run else None
    data = dataset.DataSet.open(config, progress=progress_bar, memory_path=memory_path)
    pixels = data.pixels()
    print(data.describe(pixels.values))
    problems = [*data.problems, *pixels.problems]
    if not problems:
        drawing = dataset.make_sampling(config, assembly.make_recipe(config))
        for fold in _folds(config) if config.fold == "all" else [config]:
            training_samples, held_out = dataclasses.replace(data, config=fold).split()
            progress = progress_bar("Looking for leaks")
            problems += splits.leaks(training_samples, held_out, decoded=True, progress=progress)
            number = f"Fold {fold.fold}: " if config.fold == "all" else ""
            print(
                f"{number}{len(training_samples)} sample(s) to train on, {len(held_out)} held out."
            )
        _write_preview(config, data, training_samples, drawing)
    if run and (run.path.is_dir() or not problems):
        run.path.mkdir(parents=True, exist_ok=True)
        data.memory.store()
    if problems:
        raise UserError(survey.list_problems(data_dir, problems))
    print("No problems found.")


def convert_labelme(config: RunConfig, _: process.StopRequest) -> None:
    """Makes a VOC folder of labelme's JSON files."""
    from unet_core.conventions import IGNORED
    from unet_core.data import labelme, layouts
    from unet_core.runs import dataset
    from unet_core.runs.progress import progress_bar

    names = dataset.make_classes(config).names
    output_dir = _required(config, "output_dir")
    warnings = labelme.convert(
        _required(config, "input"), output_dir, names, progress=progress_bar("Converting")
    )
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    listed = ",".join(f"{number}:{name}" for number, name in enumerate(names))
    way_on = f"--layout=voc --data_dir={output_dir} --classes={listed}"
    if config.folds or config.held_out_share:
        voc = dataclasses.replace(
            config, data_dir=output_dir, layout="voc", classes=f"{listed},{IGNORED}:ignore"
        )
        layouts.write_voc_lists(
            output_dir, *dataset.DataSet.open(voc, progress=progress_bar).split()
        )
        way_on += " --split=fixed"
    print(f"Train with {way_on}")


MODES = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "check_data": check_data,
    "convert_labelme": convert_labelme,
}


# Parts of the telling that would hide its thread.


def _resolve(
    config: RunConfig, run: RunDirectory, data: DataSet, training_samples, data_fingerprint: str
) -> tuple[RunConfig, str]:
    """Returns the config with nothing left to choose, and why its precision is what it is."""
    from unet_core.runs import dataset
    from unet_core.training import devices

    precision, reason = config.precision, "as asked"
    if precision == "auto" and run.holds_run():
        reason = "as this run began"
    elif precision == "auto":
        precision, reason = devices.choose_precision()
    class_weights = config.class_weights
    if config.class_balance != "none":
        class_weights = dataset.balanced_class_weights(config, data.count_classes(training_samples))
    config = dataclasses.replace(
        config,
        precision=precision,
        class_weights=class_weights,
        # Stored whole, so that the run can be used from any folder.
        data_dir=os.path.abspath(config.data_dir),
    )
    return run.resolve_for_resume(config, data_fingerprint), reason


def _folds(config: RunConfig) -> list[RunConfig]:
    """Returns the config of each fold, in a folder of its own."""
    if config.folds < 2:
        raise UserError(f"--fold=all needs --folds, at least 2 (received {config.folds}).")
    if config.strategy == "multi_worker":
        raise UserError(
            "--fold=all cannot be combined with --strategy=multi_worker: start each fold by its "
            "number, with a --run_dir of its own."
        )
    return [
        dataclasses.replace(
            config,
            fold=str(fold),
            run_dir=os.path.join(config.run_dir or "", f"fold-{fold}"),
            output_dir=config.output_dir and os.path.join(config.output_dir, f"fold-{fold}"),
        )
        for fold in range(config.folds)
    ]


def _write_fold_table(config: RunConfig) -> None:
    from unet_core.reports import folds

    # Where the scores are: training leaves them in the run folder, `evaluate` where it is told to.
    elsewhere = config.mode == "evaluate" and config.output_dir
    where = "output_dir" if elsewhere else "run_dir"
    scored = [pathlib.Path(getattr(fold, where)) for fold in _folds(config)]
    output_dir = pathlib.Path(getattr(config, where))
    text = folds.write(scored, output_dir)
    print(f"\n{config.folds} folds, each scored on what it held out\n{text}\n")
    print(f"folds.csv, folds.json and worst.png are in {output_dir}.")


def _open_trained(config: RunConfig, path: pathlib.Path, stopped: process.StopRequest) -> Any:
    """Returns the network to score, predict with or export."""
    from unet_core.inference.trained import open_trained

    process.prepare_devices(dataclasses.replace(config, strategy="none"), stopped)
    return open_trained(path, weights=config.weights)


def _finish(config, run, loop, samples, read, stopped) -> None:
    """Scores held-out images and predicts test images, unless that was done at this step."""
    from unet_core import training
    from unet_core.data import layouts
    from unet_core.inference.trained import Trained
    from unet_core.runs import dataset

    if run.is_finished(loop.step):
        print(f"{run.path}: finished at step {loop.step}. To train longer, raise --train_steps.")
        return
    step = loop.step
    with contextlib.ExitStack() as stack:
        if config.weights == "best" and samples[1]:
            step = training.load_weights(run.checkpoints, loop.model, best=True)
        else:
            stack.enter_context(loop.averaged_weights())
        trained = Trained(loop.model, config, step)
        if samples[1]:
            _score(config, run, run.path, trained, samples, read, stopped)
        test = dataset.test_folder(config)
        if test and not stopped():
            output_dir = pathlib.Path(config.output_dir or run.predictions)
            overwrite = config.overwrite or not config.output_dir
            sources = layouts.find_images(test)
            failures = _predict(config, trained, sources, output_dir, stopped, overwrite=overwrite)
            for failure in failures:
                print(f"WARNING: {failure}", file=sys.stderr)
    if stopped():
        print("Stopped; training is done. Start the same command again for what is missing.")
    else:
        run.mark_finished(loop.step)
        print(
            f"Everything is in {run.path}; watch the curves with: tensorboard --logdir={run.events}"
        )


def _make_predictor(config: RunConfig, trained: Any) -> Any:
    from unet_core.inference.predictor import Predictor

    precision = None if config.precision == "auto" else config.precision
    return Predictor(trained, tta=config.tta, window_px=config.window_px, precision=precision)


def _object_class(config: RunConfig, trained: Any) -> str:
    return config.object_class or trained.config.object_class


def _score(config, run, output_dir, trained, samples, read, stopped) -> None:
    from unet_core.reports.evaluation import describe_scores, score_samples
    from unet_core.runs.progress import progress_bar

    training_samples, held_out = samples
    result = score_samples(
        _make_predictor(config, trained).window,
        held_out,
        read,
        output_dir,
        object_class=_object_class(config, trained),
        boundary_px=config.boundary_px,
        training_samples=training_samples,
        mask_format=config.mask_format,
        progress=progress_bar,
        should_stop=stopped,
    )
    if result is not None:
        how = {"step": trained.step, "weights": config.weights, "tta": config.tta}
        run.write_scores({**how, **result}, output_dir)
        print(f"\n{describe_scores(result, read.classes)}\n")


def _predict(config, trained, sources, output_dir, stopped, *, overwrite: bool) -> Sequence[str]:
    """Writes predictions and returns a sentence for each image that could not be predicted."""
    from unet_core.outputs.files import PredictionOutputs, predict_files
    from unet_core.runs.progress import pixel_bar

    wanted = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(PredictionOutputs)
    }
    wanted["object_class"] = _object_class(config, trained)
    done = predict_files(
        _make_predictor(config, trained),
        sources,
        output_dir,
        PredictionOutputs(**wanted),
        overwrite=overwrite,
        progress=pixel_bar("Predicting"),
        should_stop=stopped,
    )
    print(f"\nPredictions in {output_dir}\n{done.table}")
    print(
        f"{done.megapixels:.1f} megapixels in {done.seconds:.1f} s, reading and writing included: "
        f"{done.megapixels / done.seconds:.2f} megapixels/s\n"
    )
    for warning in done.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    return done.failures


def _predict_video(config, trained, source, output_dir, stopped) -> None:
    from unet_core.outputs import video
    from unet_core.runs.progress import progress_bar

    if config.instances != "none" or config.mask_format != "values":
        raise UserError(
            "--instances and --mask_format are for pictures; leave them out of a video."
        )
    result = video.predict_video(
        _make_predictor(config, trained),
        str(source),
        output_dir / pathlib.Path(str(source).replace(":", "_")).stem,
        classes=trained.classes,
        channels=trained.config.channels,
        alpha=config.alpha,
        outputs=config.outputs,
        show=video.make_window(str(source)) if config.show else None,
        overwrite=config.overwrite,
        progress=progress_bar("Predicting frames"),
        should_stop=stopped,
    )
    print(f"\n{video.describe(result)}\n")
    for path in result.outputs:
        print(path)
    for warning in result.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)


def _write_synthetic_data(config: RunConfig) -> None:
    if config.synthetic_data and config.data_dir and not os.path.lexists(config.data_dir):
        from unet_core.data import synthetic
        from unet_core.runs.progress import progress_bar

        print(f"{config.data_dir} does not exist: writing synthetic membrane slices there.")
        synthetic.write_dataset(config.data_dir, progress=progress_bar("Drawing slices"))


def _write_preview(config: RunConfig, data: DataSet, samples, drawing) -> None:
    if not config.preview:
        return
    from unet_core.data import images
    from unet_core.data.stream import draw_pairs
    from unet_core.drawing.preview import contact_sheet

    path = pathlib.Path(config.preview) / "augmented.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write_png(path, contact_sheet(draw_pairs(samples, data.read, drawing, count=24)))
    print(f"{path}: training crops as the network will see them.")


def _required(config: RunConfig, name: str) -> str:
    value = getattr(config, name)
    if not value:
        raise UserError(f"--{name} is missing; it is needed for --mode={config.mode}.")
    return value


# Flags.


def _define_flags() -> None:
    for field in dataclasses.fields(RunConfig):
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        kind = field.type.split(" ")[0]
        if choices and kind == "str":
            flags.DEFINE_enum(field.name, field.default, list(choices), help_text)
        elif kind.startswith("tuple"):
            default = field.default and [str(value) for value in field.default]
            flags.DEFINE_list(field.name, default, help_text)
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
    if value is None or not field.type.startswith("tuple"):
        return value
    convert = {"tuple[int": int, "tuple[float": float, "tuple[str": str}[field.type.split(",")[0]]
    try:
        return tuple(convert(item) for item in value)
    except ValueError:
        raise UserError(
            f"`{field.name}` ({','.join(value)}) must be numbers separated by commas."
        ) from None


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags, or answers `--help` (0) and mistakes (2) at once, which absl does
    otherwise.
    """
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        print(f"{__doc__}\nFlags:\n{FLAGS.module_help(sys.modules[__name__])}")
        sys.exit(0)
    try:
        rest = FLAGS(argv)
    except (flags.Error, OSError) as error:
        print(f"train_loop: {error} See --help.", file=sys.stderr)
        sys.exit(2)
    if rest[1:]:
        print(
            f"train_loop: unexpected argument {rest[1]!r}; flags begin with --. See --help.",
            file=sys.stderr,
        )
        sys.exit(2)
    return rest


def console() -> None:
    """The console command."""
    app.run(main, flags_parser=_parse_flags)


_define_flags()

if __name__ == "__main__":
    console()
