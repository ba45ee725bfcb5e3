from xml.etree import ElementTree

import keras

from unet_core.drawing.network import draw_network
from unet_core.models.build import make_network

SVG = "{http://www.w3.org/2000/svg}"


def parts(svg):
    """Returns the lines of text and the boxes of a picture."""
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    boxes = [group.find(f"{SVG}rect").attrib for group in root.iter(f"{SVG}g")]
    return root, texts, [{key: float(box[key]) for key in ("x", "y", "width")} for box in boxes]


class TestDrawNetwork:
    def test_shows_every_level_with_its_channels_and_size(self):
        model = make_network(classes=3, depth=2, base_filters=4)
        root, texts, boxes = parts(draw_network(model, 64, 64))
        for name in ("image", "down0", "down1", "bottom", "up1", "up0", "logits"):
            assert name in texts
        assert "16 × 16×16" in texts  # noqa: RUF001
        assert "3 × 64×64" in texts  # noqa: RUF001
        assert len(boxes) == 7
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for box in boxes:
            assert box["x"] + box["width"] < width
            assert box["y"] < height

    def test_arrows_are_as_many_as_connections_and_two_are_skips(self):
        root, _, _ = parts(draw_network(make_network(classes=2, depth=2, base_filters=2), 32, 32))
        ends = [path.get("marker-end") for path in root.iter(f"{SVG}path")]
        # Image, two poolings, two transposed convolutions, logits; the other paths are arrowheads.
        assert ends.count("url(#next)") == 6
        assert ends.count("url(#skip)") == 2

    def test_boxes_do_not_cover_one_another(self):
        images = keras.Input((None, None, 3))
        model = keras.applications.MobileNetV2(
            weights=None, include_top=False, input_tensor=images, alpha=0.35
        )
        _, _, boxes = parts(draw_network(model, 64, 64))
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                apart = abs(one["x"] - other["x"]) >= one["width"]
                assert apart or one["y"] != other["y"]

    def test_names_that_xml_cannot_hold_are_written_all_the_same(self):
        images = keras.Input((None, None, 1))
        model = keras.Model(images, keras.layers.Conv2D(1, 1, name="a<b>&\"\x01'")(images))
        _, texts, _ = parts(draw_network(model, 8, 8))
        assert "a<b>&\"?'" in texts
