import cv2
import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.resizing import Resize
from unet_core.data.samples import Sample, Source
from unet_core.inference.natively import predict_sample


def test_scores_are_of_the_files_though_the_network_sees_another_size(tmp_path):
    image, mask = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    mask[0, 0] = 1  # Lost at half the size, where pixels have the values at odd places.
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cv2.imwrite(str(tmp_path / "b.png"), mask)
    sample = Sample("a", Source(tmp_path / "a.png"), (Source(tmp_path / "b.png"),))
    read = Reader(ClassMap.parse("0:a,1:b"), Scaling("range"), resize=Resize(0.5))
    seen = []

    def window(pixels):
        seen.append(pixels.shape)
        return np.full((*pixels.shape, 2), 0.5, np.float32)

    pair, probabilities = predict_sample(window, sample, read)
    assert seen == [(3, 4)]
    assert not read(sample).mask.any()
    np.testing.assert_array_equal(pair.mask, mask)
    np.testing.assert_array_equal(probabilities, np.full((6, 8, 2), 0.5))
