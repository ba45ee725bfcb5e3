"""What is said of a network that has learned nothing."""

import numpy as np
import pytest
from helpers.array_samples import ArrayReader, named

from unet_core.runs.score import nothing_learned


def said(confusion, image):
    sample = named("a")
    reader = ArrayReader({sample: (image, np.zeros(image.shape, np.uint8))})
    return nothing_learned(np.array(confusion), [sample], reader)


BRIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_network_that_finds_both_classes_is_not_warned_of():
    assert said([[90, 10], [40, 60]], BRIGHT) is None
    # Of a class that is not there nothing can be found.
    assert said([[90, 10], [0, 0]], BRIGHT) is None


def test_one_of_classes_that_may_overlap_is_enough():
    # Of 10 pixels class a is found in 4 of 5, b in none of 3: rows whether it is there.
    sample = named("a")
    reader = ArrayReader({sample: (BRIGHT, np.zeros(BRIGHT.shape, np.uint8))}, classes="a,b")
    confusion = np.array([[[5, 0], [1, 4]], [[7, 0], [3, 0]]])
    assert nothing_learned(confusion, [sample], reader) is None
    confusion[0] = [[5, 0], [5, 0]]
    assert "no class (nearly) everywhere" in nothing_learned(confusion, [sample], reader)


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
