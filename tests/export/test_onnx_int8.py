"""Networks in int8, written by hand and by the program."""

import re
import shutil
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from helpers.program import TINY, check_refused, write_slices

from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.export import onnx_int8
from unet_core.export.export import export
from unet_core.inference.predictor import Predictor
from unet_core.inference.trained import build_network
from unet_core.runs import calibration
from unet_core.runs.calibration import KnownImages
from unet_core.runs.dataset import DataSet
from unet_core.settings import RunConfig

pytestmark = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None,
    reason="onnx or onnxruntime is not installed",
)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def run(slices, tmp_path_factory):
    """A run that has learned something: of six slices it has held out the last two."""
    from absl.testing import flagsaver

    from unet_core import door as program

    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = [f"--data_dir={slices}", f"--run_dir={folder}", *TINY, "--train_steps=150"]
    flags += ["--learning_rate=0.01", "--base_filters=8", "--normalization=batch"]
    every = ("eval", "report", "checkpoint")
    flags += ["--class_balance=inverse", *(f"--{each}_every_steps=150" for each in every)]
    with flagsaver.flagsaver():
        assert program.main(program._parse_flags(["train_loop", *flags])) == 0
    return folder


def export_of(run, folder, door, *flags):
    return door(
        "--mode=export",
        f"--run_dir={run}",
        f"--output_dir={folder}",
        "--formats=onnx_int8",
        *flags,
    )


def known_images(config):
    data = DataSet.open(config.data, progress=lambda _: lambda items: items)
    return KnownImages(data, data.samples, ())


class TestProgram:
    def test_file_computes_in_int8_nearly_the_same_masks(self, run, slices, door, tmp_path):
        import onnx

        code, out, err = export_of(run, tmp_path / "e", door)
        assert code == 0, err
        path = tmp_path / "e" / "model_int8.onnx"
        proto = onnx.load(path)
        (names,) = (each.value for each in proto.metadata_props if each.key == "class_names")
        assert names == "membrane\ncell"
        integers = {each.name for each in proto.graph.initializer if each.data_type == 3}
        inputs = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
        # Depth 1: two convolutions down, two at the bottom, one up, two more, and the head.
        assert len(integers & inputs) == 8
        find_probabilities = onnx_int8.open_onnx(path)
        equal = []
        for number in (4, 5):
            image = read(slices / "train" / "image" / f"{number}.png")
            found = find_probabilities(image[..., None])
            expected = Predictor(run)(image)
            equal.append(found.argmax(-1) == expected.argmax(-1))
            # They are not passed through 8 bits themselves.
            assert not np.allclose(found * 255, np.rint(found * 255), atol=0.01)
            np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
            assert 0.05 < expected.argmax(-1).mean() < 0.95
        agreement = np.mean(equal)
        assert agreement >= 0.99
        line = re.search(r"In int8, (\S+) % of the pixels of 2 held-out image\(s\)", out)
        assert float(line[1]) == pytest.approx(100 * agreement, abs=0.006)
        scored = re.search(r"Dice: membrane (\S+) \(float32 (\S+)\), cell (\S+) ", out)
        assert float(scored[1]) == pytest.approx(float(scored[2]), abs=0.01)
        assert "WARNING" not in err

    def test_calibrates_on_training_images_and_writes_equal_files(
        self, run, slices, door, tmp_path, monkeypatch
    ):
        given = []
        known_as = KnownImages.calibration.fget

        def noting(self):
            given.append((list(self.training), known_as(self)))
            return given[-1][1]

        monkeypatch.setattr(KnownImages, "calibration", property(noting))
        for name in ("a", "b"):
            assert export_of(run, tmp_path / name, door)[0] == 0
        first, second = ((tmp_path / name / "model_int8.onnx").read_bytes() for name in ("a", "b"))
        assert first == second
        samples, images = given[0]
        # The run has held out slices 4 and 5.
        assert [each.image.path.name for each in samples] == [f"{n}.png" for n in range(4)]
        for number, image in enumerate(images):
            stored = read(slices / "train" / "image" / f"{number}.png")
            np.testing.assert_array_equal(image, stored[..., None])
            assert image.dtype == np.uint8

    def test_disagreement_is_warned_of(self, run, door, tmp_path, monkeypatch):
        monkeypatch.setattr("unet_core.runs.export.LEAST_AGREEMENT", 1.01)
        code, _, err = export_of(run, tmp_path / "e", door)
        assert code == 0
        assert "WARNING" in err
        assert "model_int8.onnx: differs" in err

    def test_images_that_are_not_there_are_one_message(self, run, slices, door, tmp_path):
        moved = shutil.copytree(run, tmp_path / "run")
        config = moved / "config.json"
        config.write_text(config.read_text().replace(str(slices), str(tmp_path / "gone")))
        result = export_of(moved, tmp_path / "e", door)
        check_refused(result, tmp_path / "gone", "not there", "--data_dir", "--formats")
        assert not (tmp_path / "e").exists()
        code, _, err = export_of(moved, tmp_path / "e", door, f"--data_dir={slices}")
        assert code == 0, err

    def test_other_images_are_refused(self, run, slices, door, tmp_path):
        other = shutil.copytree(slices, tmp_path / "other")
        path = other / "train" / "image" / "0.png"
        cv2.imwrite(str(path), 255 - read(path))
        result = export_of(run, tmp_path / "e", door, f"--data_dir={other}")
        check_refused(result, other, "is not what", "be calibrated", "--data_dir", "--formats")

    def test_export_of_an_export_is_refused(self, run, door, tmp_path):
        same = "--mode=export", f"--run_dir={run}", "--formats=keras"
        assert door(*same, f"--output_dir={tmp_path / 'e'}")[0] == 0
        result = export_of(tmp_path / "e", tmp_path / "f", door)
        check_refused(result, tmp_path / "e", "is an export", "--run_dir", "--formats")

    def test_of_folds_it_is_calibrated_on_what_any_was_trained_on(self, run, door, tmp_path):
        for number in range(3):
            shutil.copytree(run, tmp_path / "cv" / f"fold-{number}")
        code, out, err = export_of(tmp_path / "cv", tmp_path / "e", door)
        assert code == 0, err
        assert "% of the pixels of 6 training image(s)" in out
        assert "no image is held out" in out
        assert "Dice" not in out

    def test_missing_package_is_named_before_anything_is_read(
        self, run, door, tmp_path, monkeypatch
    ):
        there = onnx_int8.importlib.util.find_spec
        monkeypatch.setattr(
            onnx_int8.importlib.util,
            "find_spec",
            lambda name: None if name == "onnxruntime" else there(name),
        )
        result = export_of(run, tmp_path / "e", door, f"--data_dir={tmp_path / 'gone'}")
        check_refused(result, "package onnxruntime;", "unet_core[onnx]")


class TestKnownImages:
    def test_images_and_masks_are_those_that_the_network_is_to_see(
        self, slices, tmp_path, monkeypatch
    ):
        deep = shutil.copytree(slices, tmp_path / "deep")
        for path in (deep / "train" / "image").iterdir():
            cv2.imwrite(str(path), read(path).astype(np.uint16) * 257)
        same = {"classes": "0:membrane,255:cell", "resize": "0.5"}
        plain, of_deep, measured = (
            known_images(RunConfig.of(data_dir=str(folder), **same, **more))
            for folder, more in (
                (slices, {}),
                (deep, {}),
                (deep, {"intensities": "percentile:1,99"}),
            )
        )
        sample, stored = plain.training[0], read(slices / "train" / "image" / "0.png")
        halved = stored.reshape(32, 2, 32, 2).mean((1, 3))[..., None]
        assert plain.as_served(sample).dtype == np.uint8
        np.testing.assert_allclose(plain.as_served(sample), halved, atol=0.5)
        assert plain.truth(sample).shape == (32, 32)
        # The graph takes 8 bits if it scales by the type, and otherwise the units of the file.
        np.testing.assert_allclose(of_deep.as_served(of_deep.training[0]), halved, atol=0.5)
        found = measured.as_served(measured.training[0])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 257 * halved, atol=1)
        # Of large images the middle.
        monkeypatch.setattr(calibration, "WINDOW_PX", 20)
        np.testing.assert_allclose(plain.as_served(sample), halved[6:26, 6:26], atol=0.5)
        assert plain.truth(sample).shape == (20, 20)


class TestFunction:
    @pytest.mark.parametrize(
        ("settings", "dtype"),
        [
            (dict(intensities="percentile:2,97.5", channels=3), "float32"),
            (dict(normalization="group", decoder="upsample", stem_stride=2), "uint8"),
            (dict(classes="cells,nuclei", mask_folder="a,b", heads="sigmoid"), "uint8"),
        ],
    )
    def test_probabilities_are_close_to_those_of_the_network(self, tmp_path, settings, dtype):
        small = {"classes": "0:membrane,255:cell", "depth": 2, "base_filters": 8}
        config = RunConfig.of(**{**small, "precision": "float32", **settings})
        classes = ClassMap.parse(config.data.classes)
        scaling = Scaling.parse(config.data.intensities)
        model = build_network(config)
        rng = np.random.default_rng(1)
        shape = (4, 48, 64, config.data.channels)
        images = list((rng.random(shape) * 255).astype(dtype))
        how = {"classes": classes, "scaling": scaling, "settings": config.stored(), "step": 1}
        with pytest.raises(ValueError, match="as `calibration`"):
            export(model, tmp_path / "e", formats=["onnx_int8"], **how)
        formats = ["onnx", "onnx_int8"]
        export(model, tmp_path / "e", formats=formats, calibration=images, **how)
        expected, found = (
            onnx_int8.open_onnx(tmp_path / "e" / name)(images[0])
            for name in ("model.onnx", "model_int8.onnx")
        )
        assert 0 < abs(found - expected).max() < 0.1
        assert abs(found - expected).mean() < 0.02


def test_missing_package_is_a_user_error(monkeypatch):
    monkeypatch.setattr(onnx_int8.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="onnx and onnxruntime"):
        onnx_int8.check_installed()
