"""The example on Ray Data, run on a Ray of its own on this machine."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers.brightness import make_brightness
from helpers.program import ROOT

from unet_core.data.intensities import Scaling
from unet_core.export.export import export
from unet_core.inference import Predictor
from unet_core.inference.masks import usual_rule


@pytest.fixture
def exported(tmp_path):
    """An export of a network that says cell where the grey value is above 100."""
    trained = make_brightness()
    settings = trained.config.stored()
    how = {"scaling": Scaling.parse("range"), "settings": settings, "formats": ["keras"]}
    export(trained.model, tmp_path / "exported", classes=trained.classes, step=7, **how)
    return tmp_path / "exported"


@pytest.mark.slow
def test_two_actors_write_the_masks_of_the_predictor_and_tell_what_they_cannot(exported, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        image = random.integers(0, 256, (30 + number, 40)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "in" / name), image)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    # Two cores, however many there are, so that each actor has one.
    code = (
        "import ray, runpy, sys; ray.init(num_cpus=2, include_dashboard=False); "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    example = ROOT / "examples" / "predict_on_ray.py"
    arguments = [example, exported, tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), "--actors=2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "6 of 7 masks are in" in done.stdout
    assert "broken.png: cannot be decoded" in done.stderr
    predictor = Predictor(exported)
    rule = usual_rule(predictor.classes)
    for name in names:
        expected = predictor.classes.values(rule(predictor(tmp_path / "in" / name)))
        path = tmp_path / "out" / name.replace(".png", "_predict.png")
        found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, expected)
        assert 0 < (found == 255).mean() < 1
    assert len(list((tmp_path / "out").iterdir())) == 6
