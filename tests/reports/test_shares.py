"""Scores of shares, merged; `tests/test_shares.py` shows them by the program."""

import json

import numpy as np
import pytest
from helpers.array_samples import ArrayReader, named

from unet_core.conventions import IGNORED
from unet_core.files import without_nan
from unet_core.reports.evaluation import add_up, score_samples, write_overview
from unet_core.reports.shares import Head, merge_scores, write_share
from unet_core.settings import RunConfig
from unet_core.shards import Shard

CLASSES = {
    "0:membrane,255:cell": {},
    "0:sky,1:road,2:tree": {},
    "cells,nuclei": {"heads": "sigmoid"},
}


def window(image):
    """Random probabilities, of a number of classes that the height of the image tells."""
    number = {16: 2, 18: 3, 20: 2}[len(image)]
    noise = np.random.default_rng(int(image.sum())).uniform(size=(*image.shape[:2], number))
    return (noise / (noise.sum(-1, keepdims=True) if len(image) < 20 else 1)).astype(np.float32)


def reader(classes):
    """Seven images; of one no pixel counts, which leaves its scores without a value."""
    height = dict(zip(CLASSES, (16, 18, 20), strict=True))[classes]
    rng = np.random.default_rng(0)
    arrays = {}
    for number in range(7):
        image = rng.integers(0, 256, (height, 14)).astype(np.uint8)
        ids = rng.integers(0, 3 if height == 18 else 2, image.shape).astype(np.uint8)
        arrays[named(str(number))] = image, ids
    arrays[named("3")][1][:] = IGNORED
    return ArrayReader(arrays, classes)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_are_those_of_one_process_to_the_last_digit(classes, count, tmp_path):
    read, config = reader(classes), RunConfig.of(classes=classes, **CLASSES[classes])
    samples = list(read.arrays)
    whole = score_samples(window, samples, read, tmp_path / "whole")
    for number in range(count, 0, -1):
        shard = Shard(number, count)
        scored = add_up(window, shard.of(samples), read, tmp_path)
        write_share(tmp_path, shard, scored, Head({"weights": "a"}, config, {"step": 5}))
    merged = merge_scores(tmp_path)
    assert merged.shares == count
    assert merged.how == {"step": 5}
    assert merged.classes == read.classes
    as_json = [json.dumps(without_nan(each)) for each in (merged.result, whole)]
    assert as_json[0] == as_json[1]
    write_overview(tmp_path, merged.result, merged.classes)
    for name in ("per_image.csv", "worst.png", "precision_recall.png"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_folder_without_shares_has_nothing_to_merge(tmp_path):
    assert merge_scores(tmp_path) is None
