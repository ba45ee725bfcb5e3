import re
from xml.etree import ElementTree

import keras
import pytest
import tensorflow as tf
from helpers.program import check_refused, in_a_process

from unet_core.models.build import make_network
from unet_core.models.flops import training_flops
from unet_core.models.geometry import tile_geometry
from unet_core.run_directory import RunDirectory
from unet_core.runs import step_memory
from unet_core.settings import RunConfig

TINY = ["--depth=1", "--base_filters=2", "--crop_size=16", "--precision=float32"]


@pytest.fixture
def no_step(monkeypatch):
    """The training step, which takes seconds to trace and to compile, is left out."""
    needed = step_memory.Estimate(1, 2, 3, 4, 5)
    monkeypatch.setattr(step_memory.Trial, "estimate", lambda _: needed)
    monkeypatch.setattr(step_memory.Trial, "run", lambda _: None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def check_done(result):
    code, out, err = result
    assert code == 0, err
    return out


class TestSummary:
    def test_shows_layers_figures_and_memory_and_draws(self, door, here, monkeypatch):
        monkeypatch.setattr(step_memory.Trial, "run", lambda _: None)
        out = check_done(door("--mode=summary", *TINY, "--global_batch_size=3"))
        model = make_network(classes=2, depth=1, base_filters=2)
        for layer in model.layers[1:]:
            assert re.search(rf"^{layer.name} +{type(layer).__name__} ", out, re.MULTILINE)
        assert f"{model.count_params():,} trainable, 0 not" in out
        step = training_flops(model, 3, 16, 16) / 1e9
        assert f"Training step:   {step:.4g} GFLOP" in out
        halo = tile_geometry(model).halo
        assert f"Receptive field: at most {2 * halo + 1} x {2 * halo + 1} pixels" in out
        assert re.search(r"Estimated: \d+ MB", out)
        assert re.search(r"Measured: \d+ MB, the growth of the peak resident memory", out)
        assert ElementTree.parse(here / "network.svg").getroot().tag.endswith("svg")

    def test_file_that_is_there_is_kept_unless_it_may_be_replaced(self, door, here, no_step):
        (here / "network.svg").write_text("mine")
        check_refused(door("--mode=summary", *TINY), "network.svg", "--overwrite", "--output_dir")
        assert (here / "network.svg").read_text() == "mine"
        check_done(door("--mode=summary", *TINY, "--output_dir=elsewhere"))
        assert (here / "elsewhere" / "network.svg").exists()
        check_done(door("--mode=summary", *TINY, "--overwrite"))
        assert (here / "network.svg").read_text() != "mine"

    def test_frozen_layers_are_counted_apart(self, door, here, no_step):
        out = check_done(door("--mode=summary", *TINY, "--freeze=head"))
        model = make_network(classes=2, depth=1, base_filters=2)
        # A 1x1 convolution of two channels and a bias.
        assert f"{model.count_params() - 3:,} trainable, 3 not" in out

    def test_network_that_looks_everywhere_says_so(self, door, here, no_step):
        out = check_done(door("--mode=summary", *TINY, "--normalization=instance"))
        assert "Receptive field: the whole image" in out
        assert "unbounded" in out

    @pytest.mark.slow
    def test_step_that_is_measured_trains_every_network(self, here):
        # In a process of its own, whose peak it is; sizes that are no multiple of anything, several
        # outputs, micro-batches, averages.
        flags = ["--depth=2", "--deep_supervision", "--crop_size=21", "--micro_batches=2"]
        flags += [*TINY[1:2], "--ema_decay=0.9"]
        done = in_a_process("--mode=summary", *flags, cwd=here)
        assert done.returncode == 0, done.stderr
        measured = re.search(r"Measured: ([\d,]+) MB, the growth of the peak resident", done.stdout)
        assert int(measured[1].replace(",", "")) > 0

    def test_flag_file_may_name_a_run_that_is_yet_to_begin(self, door, here, no_step):
        (here / "mine.flags").write_text("--run_dir=runs/mine\n--train_steps=9\n")
        check_done(door("--mode=summary", *TINY, f"--flagfile={here / 'mine.flags'}"))
        assert (here / "network.svg").exists()
        assert not (here / "runs").exists()

    def test_flag_without_use_is_refused(self, door, here):
        check_refused(door("--mode=summary", *TINY, "--train_steps=3"), "--train_steps", "summary")


class TestSummaryOfRun:
    @pytest.fixture
    def run(self, tmp_path):
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        settings = {"depth": 1, "base_filters": 2, "crop_size": 16, "precision": "float32"}
        run.store(RunConfig.of(**{"classes": "0:membrane,255:cell", **settings}), "fingerprint")
        return run

    def test_is_of_its_network_and_drawn_in_its_folder(self, door, here, run, no_step):
        for _ in range(2):
            out = check_done(door("--mode=summary", f"--run_dir={run.path}"))
            assert f"{make_network(classes=2, depth=1, base_filters=2).count_params():,}" in out
        assert run.network.exists()
        assert not list(here.iterdir())

    def test_batch_and_crop_may_be_others(self, door, here, run, no_step):
        flags = ["--global_batch_size=2", "--crop_size=32"]
        out = check_done(door("--mode=summary", f"--run_dir={run.path}", *flags))
        assert "2 crops of 32 x 32" in out

    def test_another_network_is_refused(self, door, here, run):
        refused = door("--mode=summary", f"--run_dir={run.path}", "--depth=3")
        check_refused(refused, "--depth (3)", "(1)", "--run_dir")

    def test_file_that_the_run_has_not_written_is_kept(self, door, here, run):
        run.network.write_text("mine")
        check_refused(door("--mode=summary", f"--run_dir={run.path}"), run.network)
        assert run.network.read_text() == "mine"


class TestEstimate:
    @pytest.fixture
    def made(self, monkeypatch):
        """(model, optimizer, graph) of 9 x 2 weights and 2 biases, whose tensors take 1000."""
        monkeypatch.setattr(step_memory.liveness, "peak_bytes", lambda *_, **__: 1000)
        monkeypatch.setattr(step_memory.liveness, "count_ops", lambda _: 10)
        images = keras.Input((None, None, 1))
        model = keras.Model(images, keras.layers.Conv2D(2, 3, padding="same")(images))
        optimizer = keras.optimizers.SGD(momentum=0.9)
        optimizer.build(model.trainable_variables)
        return tf.Graph(), model, optimizer

    def test_is_the_sum_of_its_parts_by_hand(self, made):
        found = step_memory.estimate(*made, RunConfig.of(ema_decay=0.0))
        assert found.weights == 80
        # The momenta, a counter of 64 bits and a rate of 32.
        assert found.optimizer == 80 + 8 + 4
        assert (found.tensors, found.slack, found.program) == (1000, 200, 40_280_000)
        assert found.on_device == 80 + 92 + 1200
        assert found.total == 80 + 92 + 1200 + 40_280_000

    def test_averages_and_sums_of_micro_batches_are_kept_beside_the_momenta(self, made):
        both = RunConfig.of(ema_decay=0.9, micro_batches=2, global_batch_size=2)
        assert step_memory.estimate(*made, both).optimizer == 80 + 12 + 80 + 80

    def test_replicas_of_this_machine_share_its_memory(self, made):
        found = step_memory.estimate(*made, RunConfig.of(ema_decay=0.0), replicas=2)
        assert found.tensors == 2000

    @pytest.mark.slow
    @pytest.mark.skipif(not step_memory.has_onednn(), reason="The estimate was fitted to oneDNN.")
    @pytest.mark.parametrize(
        "flags",
        [
            ["--stem_stride=2", "--normalization=batch", "--crop_size=256"],
            ["--base_filters=16", "--crop_size=256", "--global_batch_size=4"],
            ["--encoder=mobilenet_v2", "--crop_size=192"],
        ],
    )
    def test_is_within_15_percent_of_what_is_measured(self, here, flags):
        done = in_a_process("--mode=summary", "--precision=float32", *flags, cwd=here)
        assert done.returncode == 0, done.stderr
        estimated, measured = (
            int(re.search(rf"{word}: ([\d,]+) MB", done.stdout)[1].replace(",", ""))
            for word in ("Estimated", "Measured")
        )
        assert estimated == pytest.approx(measured, rel=0.15)
