import threading

import cv2
import numpy as np
import pytest

from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (10, 12)).astype(np.uint8)
MASK = (IMAGE > 100).astype(np.uint8)


def write(folder, name="a", image=IMAGE, mask=MASK):
    cv2.imwrite(str(folder / f"{name}.png"), image)
    cv2.imwrite(str(folder / f"{name}_mask.png"), mask)
    mask_source = Source(folder / f"{name}_mask.png")
    return Sample(name, Source(folder / f"{name}.png"), (mask_source,))


def reader(classes="0:a,1:b", scaling="range", **kwargs):
    return Reader(ClassMap.parse(classes), Scaling.parse(scaling), **kwargs)


class TestReader:
    def test_image_and_mask_are_those_of_the_files(self, tmp_path):
        pair = reader()(write(tmp_path))
        assert pair.name == "a"
        np.testing.assert_array_equal(pair.image, IMAGE)
        np.testing.assert_array_equal(pair.mask, MASK)

    def test_three_channels_and_floats_are_made_as_asked(self, tmp_path):
        sample = write(tmp_path)
        pair = reader(scaling="zscore", channels=3, dtype=np.float32)(sample)
        assert pair.image.shape == (10, 12, 3)
        assert pair.image.dtype == np.float32
        np.testing.assert_allclose(pair.image.mean((0, 1)), 127.5, atol=1e-3)

    def test_what_fits_is_read_once_and_the_rest_again(self, tmp_path):
        large = np.zeros((1024, 600), np.uint8)
        samples = [write(tmp_path, name, large, large) for name in "abc"]
        # A pair takes 1.2 MB: one fits into two megabytes.
        read = reader(classes="0:a,1:b", cache_mb=2)
        kept = [read(sample) for sample in samples]
        assert [read(s) is k for s, k in zip(samples, kept, strict=True)] == [True, False, False]

    def test_weights_are_made_once_of_the_mask(self, tmp_path):
        read, calls = reader(), []
        sample = write(tmp_path)
        assert read.weights(sample) is None
        read.make_weights = lambda mask: calls.append(1) or 2 * mask.astype(np.float32)
        for _ in range(2):
            np.testing.assert_array_equal(read.weights(sample), 2 * MASK)
        assert len(calls) == 1

    def test_threads_get_the_same(self, tmp_path):
        samples = [write(tmp_path, str(n)) for n in range(6)]
        read, found = reader(), []

        def work():
            found.extend(read(sample).image.tobytes() for sample in samples)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {IMAGE.tobytes()}
        assert len(found) == 24

    def test_sizes_that_differ_are_refused_by_name(self, tmp_path):
        sample = write(tmp_path, mask=MASK[:5])
        with pytest.raises(UserError, match=r"a\.png: is 12x10 pixels, its mask 12x5"):
            reader()(sample)

    def test_unknown_value_is_refused_by_the_name_of_the_mask(self, tmp_path):
        sample = write(tmp_path, mask=MASK + 1)
        with pytest.raises(UserError, match=r"a_mask\.png: The mask holds values"):
            reader()(sample)

    def test_float_outside_the_range_is_refused_by_the_name_of_the_image(self, tmp_path):
        sample = write(tmp_path)
        cv2.imwrite(str(tmp_path / "f.tif"), IMAGE.astype(np.float32))
        with pytest.raises(UserError, match=r"f\.tif: The image holds floats from"):
            reader(dtype=np.float32)(Sample("f", Source(tmp_path / "f.tif"), sample.mask))
