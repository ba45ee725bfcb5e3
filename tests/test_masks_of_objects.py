"""Masks that number objects, from the folder to scores and predicted objects."""

import json

import cv2
import numpy as np
import pytest
from helpers.program import TINY

CLASSES = "--classes=0:background,100:nucleus,200:border"


@pytest.fixture
def data(tmp_path):
    """Six pictures of 64x64 with two squares of 20x20 that touch, and one file for each."""
    for number in range(6):
        image = np.full((64, 64), 30, np.uint8)
        for square in range(2):
            mask = np.zeros((64, 64), np.uint8)
            mask[20:40, 10 + number + 20 * square :][:, :20] = 255
            image[mask > 0] = 150 + 50 * square
            path = tmp_path / "data" / str(number) / "masks" / f"{square}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), mask)
        (tmp_path / "data" / str(number) / "images").mkdir()
        cv2.imwrite(str(tmp_path / "data" / str(number) / "images" / "i.png"), image)
    return tmp_path / "data"


def test_are_trained_on_scored_and_predicted_by_what_the_run_remembers(door, data, tmp_path):
    pytest.importorskip("skimage", reason="the extra `scores` is not installed")
    run = tmp_path / "run"
    flags = [f"--data_dir={data}", "--layout=objects", "--masks=instances", CLASSES]
    code, out, err = door("--mode=check_data", *flags, "--border_px=2")
    assert code == 0, err
    assert "12 object(s) of nucleus, 12 of them touching another" in out
    # In each of 20 rows 4 pixels, and as many in the row above and in that below, from where both
    # squares are within 2 pixels too: 6 pictures of 88.
    assert f"border{528:>23d}" in out
    recipe = [flag for flag in TINY if not flag.startswith("--classes")]
    more = ["--train_steps=2", "--border_weight=10", "--border_px=2", f"--run_dir={run}"]
    code, out, err = door(*flags, *recipe, *more)
    assert code == 0, err
    assert json.loads((run / "scores.json").read_text())["objects"].keys() >= {"0.50", "0.95"}
    predicted = ["--instances=watershed", "--least_object_px=5", "--outputs=mask"]
    picture = f"--input={data / '0' / 'images' / 'i.png'}"
    code, _, err = door(
        "--mode=predict",
        f"--run_dir={run}",
        picture,
        f"--output_dir={tmp_path / 'out'}",
        *predicted,
    )
    assert code == 0, err
    assert (tmp_path / "out" / "i_instances.png").exists()


def test_one_file_for_each_object_is_refused_as_masks_of_classes(door, data):
    code, _, err = door("--mode=check_data", f"--data_dir={data}", "--layout=objects", CLASSES)
    assert code == 2
    assert "--masks" in err
    assert "instances" in err
    assert "Traceback" not in err
