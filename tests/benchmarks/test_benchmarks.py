"""Every benchmark on tiny settings: the rows are all there and the figures are figures."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from helpers.program import TINY as TINY_RUN
from helpers.program import in_a_process, write_slices

from unet_core.data import tiff_bands
from unet_core.models.build import make_network

ROOT = pathlib.Path(__file__).parents[2]


def run(script, *args):
    return subprocess.run(
        [sys.executable, f"benchmarks/{script}", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def imported(name):
    """Returns a benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(output):
    """Returns {first cell: other cells} of the table; cells are two or more spaces apart."""
    lines = output.splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    rows = [re.split(r"\s{2,}", line) for line in lines[rule + 1 :] if "  " in line]
    return {first: rest for first, *rest in rows}


@pytest.mark.slow
class TestStepsPerSecond:
    def test_every_kind_of_network_has_a_row_of_positive_figures(self):
        done = run(
            "steps_per_second.py",
            *("--rows", "float32", "float32+norm", "tiny-pixel"),
            *("--rounds=2", "--steps=1", "--tiny_steps=32", "--size=32", "--base_filters=2"),
        )
        assert done.returncode == 0, done.stderr
        rows = rows_of(done.stdout)
        # Loop and fit ms/step, images/s, like for like, float32 fit and the spread; networks with
        # normalisation are also compared with Keras' layer.
        figures = {
            "float32": 6,
            "float32+norm": 7,
            "tiny-pixel": 5,
            "tiny-pixel, fit 32/call": 4,
        }
        assert {name: len(cells) for name, cells in rows.items()} == figures
        assert all(float(cell) > 0 for cells in rows.values() for cell in cells)

    def test_pytorch_trains_a_network_of_as_many_weights_beside(self):
        pytest.importorskip("torch", reason="PyTorch is not installed")
        code = (
            "import sys; sys.path[:0] = ['benchmarks', '.']; import torch_unet; "
            "of = lambda norm: torch_unet.UNet(4, 32, norm=norm).parameters(); "
            "print(*(sum(p.numel() for p in of(norm)) for norm in (False, True)))"
        )
        counted = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        ours = [
            make_network(classes=2, depth=4, base_filters=32, normalization=norm)
            for norm in ("none", "batch")
        ]
        trainable = [sum(int(np.prod(v.shape)) for v in n.trainable_variables) for n in ours]
        assert list(map(int, counted.stdout.split())) == trainable
        done = run(
            "steps_per_second.py",
            *("--peers", "torch", "--rows", "bfloat16+norm"),
            *("--rounds=2", "--steps=1", "--size=32", "--base_filters=2"),
        )
        assert done.returncode == 0, done.stderr
        cells = rows_of(done.stdout)["bfloat16+norm"]
        # All but the column of float32, which is not measured here.
        assert len(cells) == 7
        assert all(float(cell) > 0 for cell in cells)

    def test_kernels_take_less_than_the_step_when_one_runs_at_a_time(self):
        sizes = "--size=32", "--base_filters=8"
        done = run("kernels.py", "--rows", "float32+norm", "--steps=2", *sizes)
        assert done.returncode == 0, done.stderr
        if "convolution" not in done.stdout:
            pytest.skip("TensorFlow computes without oneDNN here, which has no log then")
        _, alone, convolutions, others, *_ = map(float, rows_of(done.stdout)["float32+norm"])
        assert 0 < convolutions < alone
        assert others > 0

    def test_unknown_row_is_refused(self):
        done = run("steps_per_second.py", "--rows", "float64")
        assert done.returncode == 2
        assert "float64" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def small_run(tmp_path):
    """Flags of a run on six slices of 64x64 pixels."""
    return [*TINY_RUN, "--warmup_steps=0", f"--data_dir={write_slices(tmp_path)}"]


@pytest.mark.slow
class TestFreedMemory:
    def test_both_ways_are_measured(self, small_run):
        done = run("freed_memory.py", "--rounds=1", "--steps=4", *small_run)
        assert done.returncode == 0, done.stderr
        rows = rows_of(done.stdout)
        assert list(rows) == ["freed memory is kept", "as glibc has it"]
        assert all(float(ms) > 0 for ms, _ in rows.values())
        assert float(rows["as glibc has it"][1]) == 1.0


@pytest.mark.slow
class TestStepMemory:
    def test_estimate_stands_beside_what_was_measured(self):
        small = ("--crop_size=32", "--base_filters=2", "--depth=1", "--no_line")
        done = run("step_memory.py", "--only=plain", *small)
        assert done.returncode == 0, done.stderr
        precision, estimated, measured, ratio = rows_of(done.stdout)["plain, 16 filters"]
        assert precision == "bfloat16"
        assert float(ratio) == pytest.approx(int(estimated) / int(measured), abs=0.01)


@pytest.mark.slow
class TestFirstCommand:
    def test_parts_make_up_the_whole(self, small_run):
        done = run("first_command.py", "--train_steps=2", *small_run)
        assert done.returncode == 0, done.stdout
        seconds = {name: float(cells[0]) for name, cells in rows_of(done.stdout).items()}
        whole = seconds.pop("all")
        parts = {"load TensorFlow", "build the network and trace a step", "predict the test slices"}
        assert parts <= set(seconds)
        assert sum(seconds.values()) == pytest.approx(whole, abs=0.5)


TINY = ("--rounds=2", "--size=32", "--pairs=64", "--peer_pairs=8", "--wait_steps=2")


@pytest.mark.slow
class TestInputPipeline:
    @pytest.mark.skipif(
        importlib.util.find_spec("albumentations") is None,
        reason="albumentations is missing; it comes with the extra `benchmarks`",
    )
    def test_every_pipeline_has_a_row_of_positive_figures(self):
        done = run("input_pipeline.py", *TINY)
        assert done.returncode == 0, done.stderr
        throughput, stages, waiting = done.stdout.split("\n\n")
        rows = rows_of(throughput)
        recipes = [
            f"{n}, {kind}" for n in ("membrane", "paper", "nnunet") for kind in ("grey", "RGB")
        ]
        assert set(rows) == {
            "unet_core, through tf.data",
            "unet_core, two bare threads",
            "paper, grey, through tf.data",
            "nnunet, grey, through tf.data",
            *(f"{name}, two bare threads" for name in recipes),
            "Keras ImageDataGenerator",
            "albumentations, one thread",
        }
        for pairs_per_second, spread, ratio in rows.values():
            low, high = map(float, spread.split("-"))
            assert 0 < low <= float(pairs_per_second) <= high
            assert float(ratio) > 0
        assert float(rows["Keras ImageDataGenerator"][2]) == 1
        times = rows_of(stages)
        assert list(times) == recipes
        for *parts, whole in (map(float, cells) for cells in times.values()):
            assert len(parts) == 5
            assert sum(parts) == pytest.approx(whole, abs=0.5)
            assert min(parts[:4]) > 0
        wait = re.search(r"network of ([\d.]+) ms per step waits .* ([\d.]+)%", waiting)
        assert float(wait[1]) > 0
        assert 0 <= float(wait[2]) <= 100

    def test_missing_peer_names_the_extra_and_is_left_out(self):
        # A `None` in sys.modules makes the import fail as if the package were not there.
        code = (
            "import runpy, sys; sys.modules['albumentations'] = None; "
            f"sys.argv = ['input_pipeline.py', *{TINY!r}]; sys.path.insert(0, 'benchmarks'); "
            "runpy.run_path('benchmarks/input_pipeline.py', run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ".[benchmarks]" in done.stderr
        assert "Traceback" not in done.stderr
        rows = rows_of(done.stdout.split("\n\n")[0])
        assert "unet_core, through tf.data" in rows
        assert "albumentations, one thread" not in rows


@pytest.mark.slow
class TestScaling:
    def test_every_configuration_has_a_row_and_one_device_is_the_measure(self):
        configurations = ["mirrored:1", "mirrored:2", "multi_worker:2"]
        settings = ("--rounds=1", "--steps=1", "--size=32", "--base_filters=2")
        done = run("scaling.py", *settings, "--configurations", *configurations)
        assert done.returncode == 0, done.stderr
        rows = rows_of(done.stdout)
        assert list(rows) == configurations
        assert rows["mirrored:1"][1:] == ["1.00", "0.0%"]
        assert all(float(speed) > 0 for speed, *_ in rows.values())
        assert "This shows overhead, not scaling." in done.stdout


@pytest.mark.slow
class TestInference:
    def test_every_variant_has_a_row_of_positive_figures_at_each_batch(self):
        done = run(
            "inference.py",
            *("--rounds=2", "--size=32", "--base_filters=2", "--batches", 1, 2),
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert sum("outputs agree" in line for line in lines) == 2
        rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
        rows = [re.split(r"\s{2,}", line) for line in lines[rule + 1 :]]
        names = [name for name, batch, *_ in rows if batch == "1"]
        assert names == [name for name, batch, *_ in rows if batch == "2"]
        ours = {"unet_core float32", "unet_core bfloat16", "predict float32", "predict bfloat16"}
        assert set(names) >= ours
        # Mpixel/s, three latencies and the ratio.
        assert all(len(row) == 7 for row in rows)
        assert all(float(cell) > 0 for row in rows for cell in row[1:])


@pytest.mark.slow
class TestInt8:
    @pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed"
    )
    def test_every_variant_of_a_run_has_a_time_and_scores(self, small_run, tmp_path):
        folder = tmp_path / "run"
        in_a_process(*small_run, f"--run_dir={folder}", "--train_steps=2")
        done = run("int8.py", f"--run_dir={folder}", "--rounds=2")
        assert done.returncode == 0, done.stderr
        assert "% of the pixels of 2 held-out image(s)" in done.stdout
        rows = rows_of(done.stdout)
        variants = ["unet_core bfloat16", "ONNX Runtime float32", "ONNX Runtime int8"]
        assert list(rows)[:3] == variants
        # Time, its range, speed, and the Dice of two classes and of both.
        assert all(len(cells) == 6 for cells in rows.values())
        assert all(float(cells[0]) > 0 and float(cells[2]) > 0 for cells in rows.values())
        assert rows["unet_core bfloat16"][2] == "1.00"


class TestLargeImage:
    @pytest.mark.parametrize("kind", ["grey", "tiles", "pyramid", "jpeg", "zstd"])
    def test_each_kind_is_drawn_and_read_in_bands(self, tmp_path, kind):
        large_image = imported("large_image")
        size, path = 700, tmp_path / "large.tif"
        large_image.draw(path, size, kind)
        channels = 1 if kind == "grey" else 3
        rows = 500 if kind == "grey" else 512
        drawn = np.concatenate(list(large_image.bands(size, channels, rows)))
        with tiff_bands.open_rows(path) as opened:
            read = np.concatenate([opened.read(0, 300), opened.read(300, size)])
        difference = np.abs(read.astype(int) - drawn)
        # JPEG changes levels of noise by some; the mean of two noises of 0..255 is 85 apart.
        assert difference.mean() < (8 if kind == "jpeg" else 1e-9)
        with tifffile.TiffFile(path) as file:
            assert len(file.pages) == (4 if kind in ("pyramid", "jpeg") else 1)
            assert all(page.is_reduced for page in file.pages[1:])

    @pytest.mark.slow
    def test_table_tells_speed_and_memory_and_what_was_written(self):
        done = run(
            "large_image.py",
            *("--size=700", "--kinds=jpeg", "--base_filters=2", "--precision=float32"),
        )
        assert done.returncode == 0, done.stderr
        reading, predicting = map(rows_of, done.stdout.split("\n\n")[:2])
        assert float(reading["megapixels/s"][0]) > 0
        assert "largest memory above the libraries, MB" in reading
        assert predicting["megapixels"] == ["0"]
        assert float(predicting["megapixels/s"][0]) > 0
        assert {"large_predict.png", "large_overlay.png"} <= set(predicting)


@pytest.mark.slow
class TestModels:
    def test_plain_network_is_the_measure_and_every_row_has_positive_figures(self):
        settings = ("--rounds=2", "--steps=1", "--size=32", "--depth=1", "--base_filters=2")
        done = run("models.py", *settings, "--rows", "unet+batch", "unet+group", "residual")
        assert done.returncode == 0, done.stderr
        rows = rows_of(done.stdout)
        assert list(rows) == ["unet", "unet+batch", "unet+group", "residual"]
        assert rows["unet"][3] == "1.00"
        assert all(len(cells) == 5 for cells in rows.values())
        # Weights are given in millions.
        assert all(float(cell) > 0 for cells in rows.values() for cell in cells[1:])

    def test_unknown_row_is_refused(self):
        done = run("models.py", "--rows", "alexnet")
        assert done.returncode == 2
        assert "alexnet" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
class TestTouchingDiscs:
    def test_border_class_keeps_apart_what_necks_and_components_do_not(self):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")
        done = run("touching_discs.py", "--steps=2", "--pictures=4")
        assert done.returncode == 0, done.stderr
        # The last of its tables; those before are of the trainings.
        rows = rows_of(done.stdout[done.stdout.rindex("\n---") + 1 :])
        assert len(rows) == 6
        right = [float(rest[0]) for name, rest in rows.items() if name.startswith("every pixel")]
        border, necks, regions = right
        # Every disc touches another, so that no region is one disc.
        assert border >= 0.99 > necks > regions == 0


@pytest.mark.slow
class TestTrainingMemory:
    def test_recomputation_needs_less_than_the_loop(self):
        done = run(
            "training_memory.py",
            *("--programs", "loop", "recompute"),
            *("--sizes", "384", "--batch=4", "--base_filters=8", "--rounds=1", "--norm"),
        )
        assert done.returncode == 0, done.stderr
        rows = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()[-2:]]
        assert [row[1] for row in rows] == ["unet_core", "unet_core with recomputation"]
        megabytes = [float(row[2].replace(",", "")) for row in rows]
        assert megabytes[1] < 0.9 * megabytes[0]
