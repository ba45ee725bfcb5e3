"""What all formats share: where pictures are looked for, names, pages, and our own outputs."""

import json

import cv2
import numpy as np
import pytest
import tifffile

from unet_core.data.annotations.convert import convert, propose_classes
from unet_core.data.images import read_mask
from unet_core.data.layouts.find import find_samples
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.inference.instances import components
from unet_core.inference.measure import measure
from unet_core.outputs.objects import Picture
from unet_core.settings.prediction import OBJECT_FILES

NAMES = ("background", "cell")
SIZE = (40, 50)
SQUARE = [[10, 5], [30, 5], [30, 15], [10, 15]]


def picture(path, value=7, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(size, value, np.uint8))


def coco(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    outline = [number for point in SQUARE for number in point]
    annotations = [
        {"image_id": n, "category_id": 1, "segmentation": [outline]} for n in range(len(names))
    ]
    categories = [{"id": 1, "name": "cell"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def mask_of(out, name):
    return cv2.imread(str(out / "SegmentationClass" / f"{name}.png"), cv2.IMREAD_UNCHANGED)


def grey_of(out, name):
    return cv2.imread(str(out / "JPEGImages" / f"{name}.png"), cv2.IMREAD_UNCHANGED)[0, 0]


class TestPlaces:
    @pytest.mark.parametrize(
        ("named", "place"),
        [
            ("a.png", "labels/a.png"),
            ("sub/a.png", "labels/sub/a.png"),
            ("sub\\a.png", "labels/sub/a.png"),
            ("a.png", "labels/images/a.png"),
            ("../images/a.png", "images/a.png"),
            ("..\\images\\a.png", "images/a.png"),
            ("/home/somebody/a.png", "labels/a.png"),
            ("C:\\photos\\a.png", "labels/a.png"),
            ("s3://bucket/some/a.png", "labels/images/a.png"),
        ],
    )
    def test_beside_the_annotations_or_in_the_folder_above(self, tmp_path, named, place):
        picture(tmp_path / place)
        done = convert(coco(tmp_path / "labels" / "c.json", named), tmp_path / "out", NAMES)
        assert done.pictures == 1
        assert mask_of(tmp_path / "out", "a").sum() == 200

    @pytest.mark.parametrize(
        ("named", "place"),
        [
            ("../../a.png", "a.png"),
            ("../../deep/labels/../../a.png", "a.png"),
            ("/{}/a.png", "a.png"),
            ("sub/a.png", "deep/labels/a.png"),
            ("a\0.png", "deep/labels/a.png"),
            ("", "deep/labels/a.png"),
            ("..", "deep/labels/a.png"),
            ("http://[/a.png?b", "a.png"),
        ],
    )
    def test_nowhere_else(self, tmp_path, named, place):
        picture(tmp_path / place)
        source = coco(tmp_path / "deep" / "labels" / "c.json", named.format(tmp_path))
        with pytest.raises(UserError, match=r"1 picture.s. are not beside their annotations; name"):
            convert(source, tmp_path / "out", NAMES)

    @pytest.mark.parametrize(
        ("named", "place"),
        [
            ("../../far/x/a.png", "pictures/x/a.png"),
            ("x/a.png", "pictures/a.png"),
            ("/home/somebody/x/a.png", "pictures/x/a.png"),
            ("C:\\x\\a.png", "pictures/a.png"),
        ],
    )
    def test_in_the_folder_that_was_named_and_only_there(self, tmp_path, named, place):
        source = coco(tmp_path / "labels" / "c.json", named)
        picture(tmp_path / "labels" / "a.png", size=(3, 3))
        folders = {"image_dir": tmp_path / "pictures"}
        with pytest.raises(UserError, match=r"are not in .*pictures; name"):
            convert(source, tmp_path / "out", NAMES, **folders)
        picture(tmp_path / place)
        assert convert(source, tmp_path / "out", NAMES, **folders).pictures == 1
        assert mask_of(tmp_path / "out", "a").shape == SIZE

    def test_only_pictures_are_read(self, tmp_path):
        source = coco(tmp_path / "c.json", "secret.txt", "folder", "link.png")
        (tmp_path / "secret.txt").write_text("secret")
        (tmp_path / "folder").mkdir()
        (tmp_path / "link.png").symlink_to("nowhere")
        with pytest.raises(UserError) as error:
            convert(source, tmp_path / "out", NAMES)
        assert "3 problem(s)" in str(error.value)
        assert "secret.txt: cannot be decoded as a picture" in str(error.value)
        assert "folder: cannot be read (Is a directory)" in str(error.value)
        assert "link.png: cannot be read (No such file" in str(error.value)
        assert not list((tmp_path / "out" / "JPEGImages").iterdir())

    def test_by_the_name_of_the_annotations(self, tmp_path):
        feature = {"geometry": {"type": "Polygon", "coordinates": [SQUARE]}, "type": "Feature"}
        for name in ("a_objects.geojson", "b.tif.geojson", "c.geojson", "d.geojson"):
            (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_text(json.dumps(feature))
        picture(tmp_path / "in" / "a.PNG")
        tifffile.imwrite(tmp_path / "in" / "b.tif", np.zeros(SIZE, np.uint8))
        picture(tmp_path / "in" / "images" / "c.png")
        picture(tmp_path / "in" / "d.png")
        picture(tmp_path / "in" / "d.bmp")
        with pytest.raises(UserError) as error:
            convert(tmp_path / "in", tmp_path / "out", NAMES)
        assert "1 problem(s)" in str(error.value)
        assert "d.geojson: may be about d.png, d.bmp" in str(error.value)
        assert [mask_of(tmp_path / "out", name).sum() for name in "abc"] == [200] * 3


class TestNames:
    def test_missing_pictures_are_one_problem_with_their_number(self, tmp_path):
        picture(tmp_path / "a.png")
        names = [f"{number}.png" for number in range(15)]
        with pytest.raises(UserError) as error:
            convert(coco(tmp_path / "c.json", "a.png", *names), tmp_path / "out", NAMES)
        assert "1 problem(s)" in str(error.value)
        assert "15 picture(s) are not beside" in str(error.value)
        assert "'9.png' of c.json and 5 more." in str(error.value)
        assert mask_of(tmp_path / "out", "a").sum() == 200

    def test_pictures_that_share_a_name_get_those_of_their_folders(self, tmp_path):
        for number, folder in enumerate(("one", "two")):
            picture(tmp_path / folder / "a.png", number)
        source = coco(tmp_path / "c.json", "one/a.png", "two/a.png")
        assert convert(source, tmp_path / "out", NAMES).pictures == 2
        assert [grey_of(tmp_path / "out", f"{name}_a") for name in ("one", "two")] == [0, 1]

    def test_two_annotations_of_one_picture_are_a_problem(self, tmp_path):
        picture(tmp_path / "a.png")
        coco(tmp_path / "c.json", "a.png")
        coco(tmp_path / "d.json", "a.png")
        with pytest.raises(UserError, match=r"d.json: .* would be called a, as .*a.png is"):
            convert(tmp_path, tmp_path / "out", NAMES)
        source = coco(tmp_path / "c.json", "one/a.png", "two/a.png")
        with pytest.raises(UserError, match=r"c.json: .*a.png is annotated twice"):
            convert(source, tmp_path / "other", NAMES, image_dir=tmp_path)

    def test_picture_without_shapes_is_background_and_told_of(self, tmp_path):
        picture(tmp_path / "a.png")
        source = coco(tmp_path / "c.json", "a.png")
        content = json.loads(source.read_text()) | {"annotations": []}
        source.write_text(json.dumps(content))
        (note,) = convert(source, tmp_path / "out", NAMES).notes
        assert note.startswith("1 picture(s) without shapes, which are background alone")
        assert mask_of(tmp_path / "out", "a").sum() == 0

    def test_labels_are_listed_with_a_line_to_begin_with(self, tmp_path):
        source = coco(tmp_path / "c.json", "a.png", "b.png")
        message = str(propose_classes(source))
        assert "are labelled: cell (2)." in message
        assert "--classes='0:background,1:cell'" in message

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("[]", "is in no format of annotations that is known"),
            ('{"a": 1}', "is in no format"),
            ("", "cannot be read as annotations"),
            ('{"images": [{"id": NaN', "cannot be read as annotations"),
            ("PK\x03\x04", "cannot be unpacked"),
            (None, "No such file"),
        ],
    )
    def test_file_of_no_format_is_one_message(self, tmp_path, content, words):
        path = tmp_path / "c.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=words) as error:
            convert(path, tmp_path / "out", NAMES)
        assert "1 problem(s)" in str(error.value)
        assert str(path) in str(error.value)

    def test_folder_without_annotations_is_refused(self, tmp_path):
        (tmp_path / "._a.json").write_text("left by macOS")
        with pytest.raises(UserError, match="holds no files of annotations"):
            convert(tmp_path, tmp_path / "out", NAMES)


class TestOwnOutputs:
    """What predictions write about objects becomes the mask it was written of."""

    @pytest.mark.parametrize(
        ("name", "file"),
        [("coco", "objects_coco.json"), ("geojson", "a_objects.geojson"), ("roi", "a_rois.zip")],
    )
    def test_come_back_to_the_pixel(self, tmp_path, name, file):
        if name == "roi":
            pytest.importorskip("roifile", reason="needs roifile")
        noise = np.random.default_rng(1).random(SIZE)
        blobs = cv2.GaussianBlur(noise, (0, 0), 1.5) > 0.5
        blobs[10:20, 10:20], blobs[12:15, 12:15] = True, False
        labels = components(blobs)
        picture(tmp_path / "a.png")
        pixels = np.zeros((*SIZE, 1), np.uint8)
        written = Picture(Source(tmp_path / "a.png"), measure(labels, pixels, "cell"))
        (tmp_path / file).write_bytes(OBJECT_FILES[name].make([written]))
        assert convert(tmp_path / file, tmp_path / "out", NAMES).pictures == 1
        np.testing.assert_array_equal(mask_of(tmp_path / "out", "a"), labels > 0)
        assert 300 < (labels > 0).sum() < 1700

    @pytest.mark.parametrize("name", ["coco", "roi"])
    def test_of_a_stack_become_a_stack_of_masks(self, tmp_path, name):
        if name == "roi":
            pytest.importorskip("roifile", reason="needs roifile")
        pages = np.zeros((3, *SIZE), np.uint8)
        pages[0, 3:9, 4:20], pages[2, 10:30, 30:33] = 1, 1
        tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
        written = [
            Picture(
                Source(tmp_path / "a.tif", number),
                measure(components(page > 0), page[..., None], "cell"),
            )
            for number, page in enumerate(pages)
        ]
        file = tmp_path / {"coco": "c.json", "roi": "a.zip"}[name]
        file.write_bytes(OBJECT_FILES[name].make(written))
        convert(file, tmp_path / "out", NAMES)
        samples = find_samples(tmp_path / "out", "voc").samples
        assert [sample.name for sample in samples] == ["a_000", "a_001", "a_002"]
        found = [read_mask(sample.mask[0].path, sample.mask[0].page) for sample in samples]
        np.testing.assert_array_equal(found, pages)

    def test_of_a_stack_without_pages_are_refused(self, tmp_path):
        tifffile.imwrite(
            tmp_path / "a.tif", np.zeros((2, *SIZE), np.uint8), photometric="minisblack"
        )
        source = coco(tmp_path / "c.json", "a.tif")
        with pytest.raises(UserError, match=r"a.tif has 2 page.s., and shape 0 does not say on"):
            convert(source, tmp_path / "out", NAMES)
