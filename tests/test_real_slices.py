"""The slices of the ISBI 2012 challenge, where somebody has them."""

import os
import pathlib

import numpy as np
import pytest

from unet_core import scores
from unet_core.runs.dataset import DataSet
from unet_core.settings import RunConfig


@pytest.fixture(scope="module")
def samples():
    folder = os.environ.get("UNET_CORE_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("UNET_CORE_DATA does not name the folder of the ISBI 2012 slices")
    data = DataSet.open(
        RunConfig.of(data_dir=str(folder), classes="0:membrane,255:cell").data,
        progress=lambda title: iter,
    )
    data.check()
    return [data.read(sample) for sample in data.samples]


@pytest.mark.real_data
class TestRealSlices:
    def test_thirty_slices_in_the_order_of_the_stack(self, samples):
        assert [sample.name for sample in samples] == [str(number) for number in range(30)]
        assert {sample.image.shape for sample in samples} == {(512, 512)}

    def test_neighbouring_slices_resemble_one_another_more_than_distant_ones(self, samples):
        def likeness(a, b):
            return np.corrcoef(samples[a].image.ravel(), samples[b].image.ravel())[0, 1]

        near = np.mean([likeness(i, i + 1) for i in range(29)])
        far = np.mean([likeness(i, (i + 15) % 30) for i in range(30)])
        assert near > far + 0.1

    def test_no_threshold_solves_them(self, samples):
        baseline = scores.ThresholdBaseline(2)
        for sample in samples:
            baseline.add(sample.image, sample.mask)
        assert 0.5 < baseline.best(0)[0] < 0.7
