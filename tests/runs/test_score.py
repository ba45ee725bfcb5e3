"""What is said of a network that has learned nothing."""

import numpy as np
import pytest
from helpers.array_samples import ArrayReader, named

from unet_core.metrics import scores
from unet_core.runs.score import nothing_learned


def said(confusion, image):
    sample = named("a")
    reader = ArrayReader({sample: (image, np.zeros(image.shape, np.uint8))})
    return nothing_learned(scores(np.array(confusion), reader.classes.names), [sample], reader)


BRIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_network_that_finds_both_classes_is_not_warned_of():
    assert said([[90, 10], [40, 60]], BRIGHT) is None
    # Of a class that is not there nothing can be found.
    assert said([[90, 10], [0, 0]], BRIGHT) is None


@pytest.mark.parametrize(
    ("confusion", "name"), [([[99, 0], [50, 0]], "background"), ([[0, 99], [0, 50]], "cell")]
)
def test_one_class_everywhere_is_said_with_likely_causes(confusion, name):
    text = said(confusion, BRIGHT)
    assert f"{name} (nearly) everywhere" in text
    assert "--mode=find_rate" in text
    assert "--intensities" not in text


def test_faint_images_are_the_likely_cause():
    # 12 bits in 16, scaled by the type's range: 0..16 of 255.
    text = said([[99, 0], [50, 0]], np.linspace(0, 16, 256, dtype=np.float32).reshape(16, 16))
    assert "--intensities=percentile:1,99" in text
    assert "0.016 to 16 of 0 to 255" in text
