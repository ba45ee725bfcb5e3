"""Files about objects, opened with the libraries of the programs that read them."""

import csv
import json
import pathlib
import sys

import cv2
import numpy as np
import pytest
import tifffile
from helpers.brightness import make_brightness
from helpers.rings import filled

from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.inference.instances import components
from unet_core.inference.measure import measure
from unet_core.inference.predictor import Predictor
from unet_core.outputs.files import PredictionOutputs, predict_files
from unet_core.outputs.objects import Picture
from unet_core.settings.prediction import OBJECT_FILES

roifile = pytest.importorskip("roifile", reason="needs roifile")
shapely = pytest.importorskip("shapely", reason="needs shapely")
coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")

WANTED = {"outputs": ("mask",), "instances": "components", "object_class": "cell"}
EVERY = tuple(OBJECT_FILES)


@pytest.fixture(scope="module")
def predictor():
    """Says cell where the grey value is above 100."""
    return Predictor(make_brightness())


@pytest.fixture
def images(tmp_path):
    """Two pictures: a square of two brightnesses and a ring at two edges; three random blobs."""
    first = np.full((8, 10), 50, np.uint8)
    first[1:5, 2:4], first[1:5, 4:6], first[5:8, 7:10], first[6, 8] = 120, 160, 200, 50
    (tmp_path / "images").mkdir()
    how = {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}
    tifffile.imwrite(tmp_path / "images" / "a.tif", first, **how)
    noise = np.random.default_rng(1).random((40, 37))
    blobs = np.where(cv2.GaussianBlur(noise, (0, 0), 1) > 0.5, 180, 20).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "b.png"), blobs)
    return [Source(tmp_path / "images" / name) for name in ("a.tif", "b.png")]


@pytest.fixture
def written(predictor, images, tmp_path):
    """The folder of both predictions with every file about objects."""
    wanted = PredictionOutputs(**WANTED, objects=EVERY)
    done = predict_files(predictor, images, tmp_path / "out", wanted)
    assert done.failures == ()
    return tmp_path / "out"


def labels_of(folder, name):
    labels = cv2.imread(str(folder / f"{name}_instances.png"), cv2.IMREAD_UNCHANGED)
    assert labels.max() >= 2
    return labels


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestTable:
    def test_has_a_row_for_each_object_by_its_number_in_the_instances(self, written):
        for name in ("a", "b"):
            labels, rows = labels_of(written, name), rows_of(written / f"{name}_objects.csv")
            assert [int(row["id"]) for row in rows] == list(range(1, labels.max() + 1))
            areas = [int(row["area_px"]) for row in rows]
            assert areas == np.bincount(labels.ravel())[1:].tolist()

    def test_cells_are_the_measures_in_pixels_and_micrometres(self, written):
        square, ring = rows_of(written / "a_objects.csv")
        # See tests/inference/test_measure.py; the file says 4 pixels a micrometre.
        assert (square["class"], square["mean_intensity"], square["sd_intensity"]) == (
            *("cell", "140", "20"),
        )
        assert (square["perimeter_px"], square["perimeter_um"]) == ("12", "3")
        assert (square["area_um2"], square["centroid_x_um"]) == ("1", "1")
        assert (square["touches_edge"], ring["touches_edge"]) == ("0", "1")
        assert rows_of(written / "b_objects.csv")[0]["area_um2"] == ""

    def test_given_pixel_size_counts_before_that_of_the_file(self, predictor, images, tmp_path):
        wanted = PredictionOutputs(**WANTED, objects=("csv",), pixel_size_um=0.5)
        predict_files(predictor, images, tmp_path / "out", wanted)
        assert rows_of(tmp_path / "out" / "a_objects.csv")[0]["area_um2"] == "4"
        assert rows_of(tmp_path / "out" / "b_objects.csv")[0]["pixel_width_um"] == "0.5"

    def test_intensities_are_those_of_the_file_before_scaling(self, predictor, tmp_path):
        # 257 times as much in 16 bits, which the network sees as the 120 and 160 of 8 bits.
        deep = np.full((8, 10), 50 * 257, np.uint16)
        deep[1:5, 2:4], deep[1:5, 4:6] = 120 * 257, 160 * 257
        cv2.imwrite(str(tmp_path / "deep.png"), deep)
        wanted = PredictionOutputs(**WANTED, objects=("csv",))
        predict_files(predictor, [Source(tmp_path / "deep.png")], tmp_path / "out", wanted)
        (row,) = rows_of(tmp_path / "out" / "deep_objects.csv")
        assert float(row["mean_intensity"]) == 140 * 257


class TestRois:
    def test_enclose_the_pixels_of_their_objects(self, written):
        for name in ("a", "b"):
            labels = labels_of(written, name)
            rois = roifile.roiread(written / f"{name}_rois.zip")
            assert len(rois) == labels.max()
            composite = 0
            for number, roi in enumerate(rois, 1):
                assert roi.name == f"cell-{number:05d}"
                rings = [ring.astype(int) for ring in roi.coordinates(multi=True)]
                np.testing.assert_array_equal(filled(rings, labels.shape), labels == number)
                rows, columns = np.nonzero(labels == number)
                assert (roi.left, roi.right) == (columns.min(), columns.max() + 1)
                assert (roi.top, roi.bottom) == (rows.min(), rows.max() + 1)
                composite += roi.composite
                assert roi.composite or roi.roitype == roifile.ROI_TYPE.TRACED
            # The ring has a hole, and so has one of the blobs.
            assert composite >= 1

    def test_of_a_stack_are_at_their_slices(self, predictor, tmp_path):
        page = np.full((8, 10), 50, np.uint8)
        page[1:5, 2:6] = 160
        tifffile.imwrite(tmp_path / "s.tif", np.stack([page, page.T.copy().reshape(8, 10)]))
        wanted = PredictionOutputs(**WANTED, objects=("roi",))
        sources = [Source(tmp_path / "s.tif", number) for number in (0, 1)]
        predict_files(predictor, sources, tmp_path / "out", wanted)
        for number in (0, 1):
            rois = roifile.roiread(tmp_path / "out" / f"s_{number:03d}_rois.zip")
            assert [roi.position for roi in rois] == [number + 1] * len(rois)

    def test_missing_package_is_one_message_before_anything_is_predicted(
        self, predictor, images, tmp_path, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, "roifile", None)
        wanted = PredictionOutputs(**WANTED, objects=("csv", "roi"))
        with pytest.raises(UserError, match=r"roi needs roifile: pip install 'unet_core\[objects"):
            predict_files(predictor, images, tmp_path / "out", wanted)
        assert not (tmp_path / "out").exists()


class TestGeojson:
    def test_polygons_are_valid_and_enclose_the_pixels(self, written):
        for name in ("a", "b"):
            labels = labels_of(written, name)
            collection = json.loads((written / f"{name}_objects.geojson").read_text())
            assert collection["type"] == "FeatureCollection"
            assert len(collection["features"]) == labels.max()
            for number, feature in enumerate(collection["features"], 1):
                polygon = shapely.geometry.shape(feature["geometry"])
                assert polygon.is_valid
                assert polygon.area == (labels == number).sum()
                parts = feature["geometry"]["coordinates"]
                if polygon.geom_type == "Polygon":
                    parts = [parts]
                rings = [ring for part in parts for ring in part]
                assert all(ring[0] == ring[-1] for ring in rings)
                np.testing.assert_array_equal(filled(rings, labels.shape), labels == number)

    def test_properties_are_those_of_detections_in_qupath(self, written):
        collection = json.loads((written / "a_objects.geojson").read_text())
        properties = collection["features"][0]["properties"]
        assert properties["objectType"] == "detection"
        assert properties["name"] == "cell 1"
        assert properties["classification"] == {"name": "cell"}
        assert properties["measurements"]["area_px"] == 16
        assert properties["measurements"]["area_um2"] == 1
        other = json.loads((written / "b_objects.geojson").read_text())
        assert "area_um2" not in other["features"][0]["properties"]["measurements"]


class TestCoco:
    def test_one_file_holds_the_objects_of_all_pictures(self, written):
        found = coco.COCO(str(written / "objects_coco.json"))
        assert [image["file_name"] for image in found.loadImgs([1, 2])] == ["a.tif", "b.png"]
        assert [category["name"] for category in found.loadCats([1])] == ["cell"]
        for image_id, name in ((1, "a"), (2, "b")):
            labels = labels_of(written, name)
            image = found.imgs[image_id]
            assert (image["height"], image["width"]) == labels.shape
            annotations = found.loadAnns(found.getAnnIds(imgIds=[image_id]))
            assert [each["object"] for each in annotations] == list(range(1, labels.max() + 1))
            for each in annotations:
                mask = labels == each["object"]
                np.testing.assert_array_equal(found.annToMask(each).astype(bool), mask)
                rows, columns = np.nonzero(mask)
                size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert each["bbox"] == [columns.min(), rows.min(), *size]
                assert (each["area"], each["iscrowd"]) == (mask.sum(), 0)

    @pytest.mark.parametrize("sigma", [0, 0.7, 2])
    def test_slits_leave_out_every_hole_and_run_along_the_edges_of_pixels(self, sigma):
        noise = np.random.default_rng(3).random((48, 41))
        labels = components((cv2.GaussianBlur(noise, (0, 0), sigma) if sigma else noise) > 0.45)
        pixels = np.zeros((*labels.shape, 1), np.uint8)
        picture = Picture(Source(pathlib.Path("x.png")), measure(labels, pixels, "cell"))
        assert any(len(part.holes) > 1 for parts in picture.objects.outlines for part in parts)
        found = coco.COCO()
        found.dataset = json.loads(OBJECT_FILES["coco"].make([picture]))
        found.createIndex()
        for each in found.dataset["annotations"]:
            mask = labels == each["object"]
            np.testing.assert_array_equal(found.annToMask(each).astype(bool), mask)
            rings = [np.reshape(ring, (-1, 2)) for ring in each["segmentation"]]
            # `filled` takes sides along the axes alone; a side without length is none.
            np.testing.assert_array_equal(filled(rings, labels.shape), mask)
            assert all((ring != np.roll(ring, 1, 0)).any(1).all() for ring in rings)


class TestFiles:
    def test_no_object_gives_files_without_any(self, predictor, tmp_path):
        cv2.imwrite(str(tmp_path / "dark.png"), np.full((12, 16), 10, np.uint8))
        wanted = PredictionOutputs(**WANTED, objects=EVERY)
        predict_files(predictor, [Source(tmp_path / "dark.png")], tmp_path / "out", wanted)
        assert rows_of(tmp_path / "out" / "dark_objects.csv") == []
        assert roifile.roiread(tmp_path / "out" / "dark_rois.zip") == []
        assert json.loads((tmp_path / "out" / "dark_objects.geojson").read_text())["features"] == []
        content = json.loads((tmp_path / "out" / "objects_coco.json").read_text())
        assert (len(content["images"]), content["annotations"]) == (1, [])

    def test_objects_need_a_class_and_numbers(self, predictor, images, tmp_path):
        for how in ({"object_class": "cell"}, {"instances": "components"}):
            wanted = PredictionOutputs(("mask",), objects=("csv",), **how)
            with pytest.raises(UserError, match=r"`objects` \(csv\) needs `object_class`"):
                predict_files(predictor, images, tmp_path / "out", wanted)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["a_rois.zip", "objects_coco.json"])
    def test_what_is_there_is_not_replaced(self, predictor, images, tmp_path, name):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("mine")
        wanted = PredictionOutputs(**WANTED, objects=EVERY)
        with pytest.raises(UserError, match="there already"):
            predict_files(predictor, images, tmp_path / "out", wanted)
        assert (tmp_path / "out" / name).read_text() == "mine"
