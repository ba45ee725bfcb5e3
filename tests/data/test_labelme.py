import base64
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from unet_core.conventions import IGNORED
from unet_core.data import images, labelme, synthetic
from unet_core.errors import UserError

NAMES = ("background", "cell", "nucleus")
SIZE = (40, 50)


def shape(label, points, kind="polygon", **kwargs):
    return {"label": label, "points": points, "shape_type": kind, **kwargs}


def draw(*shapes):
    return labelme.draw({"shapes": list(shapes)}, NAMES, SIZE)


def polygons_of(mask):
    """Returns the shapes a person would draw around `mask`: outlines as cells, holes after them."""
    contours, nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer, holes = [], []
    for contour, (*_, parent) in zip(contours, nesting[0], strict=True):
        points = contour[:, 0].tolist()
        if len(points) > 2:
            (outer if parent < 0 else holes).append(
                shape("cell" if parent < 0 else "_background_", points)
            )
    return outer + holes


class TestDraw:
    def test_polygons_around_synthetic_cells_overlap_them_by_98_percent(self):
        _, mask = synthetic.Volume(size=256, seed=3).slice_at(0)
        cells = (mask > 0).astype(np.uint8)
        document = {"shapes": polygons_of(cells)}
        found = labelme.draw(document, NAMES, mask.shape) == 1
        overlap = (found & (cells == 1)).sum() / (found | (cells == 1)).sum()
        assert overlap > 0.98

    def test_later_shapes_cover_earlier_ones_so_background_makes_a_hole(self):
        outer = shape("cell", [[5, 5], [30, 5], [30, 30], [5, 30]])
        hole = shape("background", [[10, 10], [20, 10], [20, 20], [10, 20]])
        found = draw(outer, hole)
        assert found[7, 7] == 1
        assert found[15, 15] == 0
        assert draw(hole, outer)[15, 15] == 1

    def test_rectangle_circle_line_and_point(self):
        found = draw(
            shape("cell", [[20, 10], [5, 3]], "rectangle"),
            shape("nucleus", [[35, 12], [35, 17]], "circle"),
            shape("cell", [[5, 30], [25, 30]], "line"),
            shape("nucleus", [[40, 32]], "point"),
        )
        assert (found[3:11, 5:21] == 1).all()
        rows, columns = np.indices(SIZE)
        # A circle of radius 5 has 79 pixels' area; a band of width 10 along 20 pixels at least 200.
        assert (found[(rows - 12) ** 2 + (columns - 35) ** 2 <= 20] == 2).all()
        assert abs((found[:, 28:46][5:20] == 2).sum() - 79) < 12
        assert (found[27:33, 6:24] == 1).all()
        assert (found[(rows - 32) ** 2 + (columns - 40) ** 2 <= 20] == 2).all()

    def test_mask_shape_is_placed_at_its_first_point_and_cut_at_the_border(self):
        inside = np.zeros((6, 8), np.uint8)
        inside[1:5, 2:6] = 255
        content = base64.b64encode(cv2.imencode(".png", inside)[1]).decode()
        found = draw(shape("nucleus", [[10, 20], [17, 25]], "mask", mask=content))
        np.testing.assert_array_equal(found[20:26, 10:18] == 2, inside > 0)
        found = draw(shape("nucleus", [[-4, 37], [3, 42]], "mask", mask=content))
        np.testing.assert_array_equal(found[37:40, :4] == 2, inside[:3, 4:] > 0)

    def test_ignored_shapes_have_the_ignored_id(self):
        square = [[5, 5], [9, 5], [9, 9], [5, 9]]
        assert draw(shape("__ignore__", square))[7, 7] == IGNORED

    def test_missing_type_is_a_polygon(self):
        one = {"label": "cell", "points": [[5, 5], [9, 5], [9, 9], [5, 9]], "shape_type": None}
        assert draw(one)[7, 7] == 1

    @pytest.mark.parametrize(
        ("one", "words"),
        [
            (shape("axon", [[1, 1]]), "shape 0 is labelled 'axon', which is none of"),
            (shape("cell", [[1, 1]], "star"), "'star' are not known"),
            (shape("cell", "x"), "cannot be drawn"),
            (shape("cell", [[1, 1], [2, float("nan")]]), "no coordinates"),
            (shape("cell", [[1, 1]], "mask", mask="?"), "cannot be drawn"),
            (shape("cell", []), "a polygon needs 3 points"),
            (shape("cell", [[1, 1], [2, 2]]), "a polygon needs 3 points"),
            (shape("cell", [[1, 1]], "circle"), "a circle needs 2 points"),
            (shape("cell", [[10**400, 1], [2, 2], [3, 3]]), "cannot be drawn"),
            (shape(["cell"], [[1, 1]]), "is none of"),
            ("cell", "is none of"),
        ],
    )
    def test_malformed_shape_is_named(self, one, words):
        with pytest.raises(UserError, match=words):
            draw(one)


class TestConvert:
    def write(self, folder, name="a", image_path="a.png", data=None, shapes=()):
        folder.mkdir(exist_ok=True)
        document = {"imagePath": image_path, "imageData": data, "shapes": list(shapes)}
        (folder / f"{name}.json").write_text(json.dumps(document))

    def encoded(self):
        image = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)
        return image, cv2.imencode(".png", image)[1].tobytes()

    @pytest.mark.parametrize("inside", [True, False])
    def test_image_and_mask_become_a_voc_folder(self, tmp_path, inside):
        image, content = self.encoded()
        square = shape("cell", [[5, 5], [9, 5], [9, 9], [5, 9]])
        data = base64.b64encode(content).decode() if inside else None
        self.write(tmp_path / "in", data=data, shapes=[square])
        if not inside:
            (tmp_path / "in" / "a.png").write_bytes(content)
        assert labelme.convert(tmp_path / "in", tmp_path / "out", NAMES) == []
        found = cv2.imread(str(tmp_path / "out" / "JPEGImages" / "a.png"), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(tmp_path / "out" / "SegmentationClass" / "a.png"), -1)
        np.testing.assert_array_equal(found, image)
        assert mask.shape == SIZE
        assert set(np.unique(mask)) == {0, 1}
        assert (tmp_path / "out" / "class_names.txt").read_text().split() == list(NAMES)

    @pytest.mark.parametrize("inside", [False, True])
    def test_mask_lies_on_the_image_as_its_exif_data_turn_it(self, tmp_path, inside):
        # Upright it is 40 wide and 30 high, with a bright part above on the left.
        upright = np.full((30, 40), 20, np.uint8)
        upright[2:12, 3:18] = 220
        exif = Image.Exif()
        # The first row of what is stored is the right side.
        exif[274] = 6
        stored = io.BytesIO()
        Image.fromarray(np.rot90(upright)).save(stored, "JPEG", quality=95, exif=exif)
        (tmp_path / "a.jpg").write_bytes(stored.getvalue())
        document = {
            "shapes": [shape("cell", [[3, 2], [17, 2], [17, 11], [3, 11]])],
            "imagePath": "a.jpg",
            "imageData": base64.b64encode(stored.getvalue()).decode() if inside else None,
            "imageHeight": 30,
            "imageWidth": 40,
        }
        (tmp_path / "a.json").write_text(json.dumps(document))
        labelme.convert(tmp_path, tmp_path / "out", NAMES)
        image = images.read_image(tmp_path / "out" / "JPEGImages" / "a.jpg")
        mask = images.read_mask(tmp_path / "out" / "SegmentationClass" / "a.png")
        assert image.shape == mask.shape == (30, 40)
        assert image[mask == 1].mean() > 200
        assert image[mask == 0].mean() < 40

    def test_nothing_is_overwritten(self, tmp_path):
        _, content = self.encoded()
        self.write(tmp_path / "in", data=base64.b64encode(content).decode())
        labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)
        mask = tmp_path / "out" / "SegmentationClass" / "a.png"
        mask.write_bytes(b"mine")
        (warning,) = labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)
        assert "was left as it is" in warning
        assert mask.read_bytes() == b"mine"

    def test_another_image_of_the_name_stays_and_is_told_of(self, tmp_path):
        _, content = self.encoded()
        self.write(tmp_path / "in", data=base64.b64encode(content).decode())
        image = tmp_path / "out" / "JPEGImages" / "a.png"
        image.parent.mkdir(parents=True)
        image.write_bytes(b"mine")
        (warning,) = labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)
        assert "JPEGImages/a.png: another image is there already" in warning
        assert image.read_bytes() == b"mine"
        assert not (tmp_path / "out" / "SegmentationClass" / "a.png").exists()

    def test_image_of_an_interrupted_conversion_gets_its_mask(self, tmp_path):
        _, content = self.encoded()
        self.write(tmp_path / "in", data=base64.b64encode(content).decode())
        labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)
        mask = tmp_path / "out" / "SegmentationClass" / "a.png"
        mask.unlink()
        assert labelme.convert(tmp_path / "in", tmp_path / "out", NAMES) == []
        assert mask.exists()

    def test_folder_of_other_classes_is_refused(self, tmp_path):
        _, content = self.encoded()
        self.write(tmp_path / "in", data=base64.b64encode(content).decode())
        labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)
        with pytest.raises(UserError, match="lists other classes than background, nucleus"):
            labelme.convert(tmp_path / "in", tmp_path / "out", ["background", "nucleus"])

    def test_image_of_another_size_than_was_labelled_is_refused(self, tmp_path):
        _, content = self.encoded()
        self.write(tmp_path / "in", data=base64.b64encode(content).decode())
        path = tmp_path / "in" / "a.json"
        document = json.loads(path.read_text()) | {"imageHeight": 50, "imageWidth": 40}
        path.write_text(json.dumps(document))
        with pytest.raises(UserError, match=r"has 50x40 pixels, .* drawn on 40x50"):
            labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)

    def test_json_nested_too_deeply_is_a_problem(self, tmp_path):
        (tmp_path / "a.json").write_text("[" * 100_000)
        with pytest.raises(UserError, match=r"an annotation of labelme \(it is nested too deeply"):
            labelme.convert(tmp_path, tmp_path / "out", NAMES)

    @pytest.mark.parametrize("path", ["../a.png", "/etc/hostname", "..\\a.png", "a\0.png", ""])
    def test_image_outside_the_folder_is_refused(self, tmp_path, path):
        _, content = self.encoded()
        (tmp_path / "a.png").write_bytes(content)
        self.write(tmp_path / "in", image_path=path)
        with pytest.raises(UserError, match=r"a\.json: its imagePath .* is not inside"):
            labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)

    def test_every_problem_is_listed_and_the_sound_are_converted(self, tmp_path):
        _, content = self.encoded()
        data = base64.b64encode(content).decode()
        self.write(tmp_path / "in", "good", data=data)
        self.write(tmp_path / "in", "label", data=data, shapes=[shape("axon", [[1, 1]])])
        (tmp_path / "in" / "text.json").write_text("{")
        with pytest.raises(UserError) as error:
            labelme.convert(tmp_path / "in", tmp_path / "out", NAMES)
        assert "2 problem(s)" in str(error.value)
        assert "label.json: shape 0 is labelled 'axon'" in str(error.value)
        assert "text.json: cannot be read as an annotation of labelme" in str(error.value)
        assert (tmp_path / "out" / "SegmentationClass" / "good.png").exists()

    def test_folder_without_json_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds no JSON"):
            labelme.convert(tmp_path, tmp_path / "out", NAMES)
