"""Each format, from a file as its program writes it to a mask whose areas are derived."""

import io
import json
import zipfile

import cv2
import numpy as np
import pytest

from unet_core.data.annotations.convert import convert
from unet_core.data.annotations.label_studio import brush
from unet_core.errors import UserError

roifile = pytest.importorskip("roifile", reason="needs roifile")
coco_mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")

NAMES = ("background", "cell", "nucleus")
HEIGHT, WIDTH = SIZE = (40, 50)
# x from 10 to 30, y from 5 to 15: 200 pixels; and one of 4 * 3 in it.
SQUARE = [[10, 5], [30, 5], [30, 15], [10, 15]]
HOLE = [[12, 7], [16, 7], [16, 10], [12, 10]]


@pytest.fixture
def folder(tmp_path):
    """A folder with the picture that annotations are about."""
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.full(SIZE, 7, np.uint8))
    return folder


def converted(folder, content, name="annotations.json", names=NAMES):
    """Returns what converting `content` did, and the mask of the picture a."""
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    out = folder.parent / "out"
    done = convert(path, out, names)
    return done, cv2.imread(str(out / "SegmentationClass" / "a.png"), cv2.IMREAD_UNCHANGED)


def problem(folder, content, name="annotations.json", names=NAMES):
    with pytest.raises(UserError) as error:
        converted(folder, content, name, names)
    assert not (folder.parent / "out" / "SegmentationClass" / "a.png").exists()
    return str(error.value)


def areas(mask):
    return np.bincount(mask.ravel(), minlength=3)[1:].tolist()


def coco(*annotations, **image):
    picture = {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH} | image
    return {
        "images": [picture],
        "annotations": [{"id": n, "image_id": 7, **each} for n, each in enumerate(annotations)],
        "categories": [{"id": 3, "name": "cell"}, {"id": 1, "name": "nucleus"}],
    }


def flat(ring):
    return [number for point in ring for number in point]


class TestCoco:
    def test_polygons_are_united_and_drawn_in_order(self, folder):
        beside = [[30, 5], [40, 5], [40, 15], [30, 15]]
        over = [[25, 5], [35, 5], [35, 15], [25, 15]]
        done, mask = converted(
            folder,
            coco(
                {"category_id": 3, "segmentation": [flat(SQUARE), flat(SQUARE), flat(beside)]},
                {"category_id": 1, "segmentation": [flat(over)]},
            ),
        )
        # 200 + 100, of which the nucleus covers 100.
        assert areas(mask) == [200, 100]
        assert done.formats == {"COCO": 1}

    @pytest.mark.parametrize("compressed", [True, False])
    def test_run_lengths_are_those_of_pycocotools(self, folder, compressed):
        inside = np.zeros(SIZE, np.uint8, order="F")
        inside[3:9, 4:20], inside[5, 6], inside[:, 40:] = 1, 0, 1
        if compressed:
            counts = coco_mask.encode(inside)["counts"].decode()
        else:
            edges = np.flatnonzero(np.diff(inside.ravel("F"), prepend=0))
            counts = np.diff([0, *edges, inside.size]).tolist()
        rle = {"size": list(SIZE), "counts": counts}
        _, mask = converted(folder, coco({"category_id": 3, "segmentation": rle, "iscrowd": 1}))
        np.testing.assert_array_equal(mask, inside)

    def test_polygons_are_nearly_those_of_pycocotools(self, folder):
        random = np.random.default_rng(2)
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        ring = np.stack([25 + 18 * np.cos(angles), 20 + 15 * np.sin(angles)], 1)
        _, mask = converted(folder, coco({"category_id": 3, "segmentation": [flat(ring.tolist())]}))
        theirs = coco_mask.decode(coco_mask.frPyObjects([flat(ring.tolist())], *SIZE))[..., 0]
        # It rounds corners to fifths of pixels.
        assert (mask != theirs).sum() <= 8
        assert theirs.sum() > 400

    def test_what_is_left_out_is_counted(self, folder):
        content = coco({"category_id": 3, "segmentation": [flat(SQUARE)]})
        content["annotations"] += [{"image_id": 8, "category_id": 3, "segmentation": []}] * 2
        far = [[n + 100 for n in flat(SQUARE)]]
        content["annotations"].append({"image_id": 7, "category_id": 1, "segmentation": far})
        done, mask = converted(folder, content)
        assert areas(mask) == [200, 0]
        listed, outside = done.notes
        assert "2 annotation(s) of an image that it does not list left out" in listed
        assert "number 1, number 2" in listed
        assert outside == "1 shape(s) outside of their pictures left out: a.png."

    @pytest.mark.parametrize(
        ("annotation", "image", "words"),
        [
            ({"category_id": 3, "bbox": [1, 2, 3, 4]}, {}, "shape 0 of a.png .*no outline"),
            ({"category_id": 9, "segmentation": [flat(SQUARE)]}, {}, "category 9 is not listed"),
            ({"category_id": 3, "segmentation": [[1, 2, 3]]}, {}, "shape 0 of a.png"),
            ({"category_id": 3, "segmentation": [[1, 2, 3, 4]]}, {}, "needs 3 points"),
            ({"category_id": 3, "segmentation": [[1, 2, 3, None, 5, 6]]}, {}, "no coordinates"),
            (
                {"category_id": 3, "segmentation": {"size": [40, 51], "counts": [2040]}},
                {},
                "has 51x40 pixels, its image 50x40",
            ),
            (
                {"category_id": 3, "segmentation": {"size": list(SIZE), "counts": [2001]}},
                {},
                "run lengths do not make up",
            ),
            (
                {"category_id": 3, "segmentation": {"size": list(SIZE), "counts": "11"}},
                {},
                "run lengths do not make up",
            ),
            (
                {"category_id": 3, "segmentation": {"size": list(SIZE), "counts": "z\u00e9"}},
                {},
                "run lengths hold",
            ),
            (
                {"category_id": 3, "segmentation": {"size": list(SIZE), "counts": [2**62, 2**63]}},
                {},
                "run lengths",
            ),
            ({"category_id": 3, "segmentation": []}, {"width": 60}, "drawn on 60x40"),
            ({"category_id": 3, "segmentation": 5}, {}, "shape 0 of a.png"),
            ({"category_id": [3]}, {}, r"annotations\[0\].category_id"),
        ],
    )
    def test_malformed_is_one_message(self, folder, annotation, image, words):
        if image:
            annotation["segmentation"] = [flat(SQUARE)]
        with pytest.raises(UserError, match=words) as error:
            converted(folder, coco(annotation, **image))
        assert "1 problem(s)" in str(error.value)


def cvat(*shapes, name="a.png", size=SIZE):
    image = f'<image id="0" name="{name}" width="{size[1]}" height="{size[0]}">'
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta><task/></meta>{image}{''.join(shapes)}</image></annotations>"
    )


def cvat_points(ring):
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in ring)


class TestCvat:
    def test_every_shape_is_drawn_by_its_place_in_z(self, folder):
        done, mask = converted(
            folder,
            cvat(
                f'<polygon label="nucleus" points="{cvat_points(HOLE)}" z_order="1"/>',
                f'<polygon label="cell" points="{cvat_points(SQUARE)}" z_order="0"/>',
                '<box label="cell" xtl="0.00" ytl="20.00" xbr="6.00" ybr="24.00"/>',
                # 10 x 2 around (25, 25), turned by 90 degrees: x from 24 to 26, y from 20 to 30.
                '<box label="nucleus" xtl="20" ytl="24" xbr="30" ybr="26" rotation="90.00"/>',
                # Rows of 3 pixels: 2 outside, 3 inside, 1 outside, at column 40, row 30.
                '<mask label="cell" rle="2, 3, 1" left="40" top="30" width="3" height="2"/>',
                '<tag label="blurred"><attribute name="a">b</attribute></tag>',
            ),
            "annotations.xml",
        )
        # 200 - 12 + 24 + 3, and 12 + 20.
        assert areas(mask) == [215, 32]
        assert (mask[20:30, 24:26] == 2).all()
        np.testing.assert_array_equal(mask[30:32, 40:43], [[0, 0, 1], [1, 1, 0]])
        assert done.formats == {"CVAT": 1}
        (note,) = done.notes
        assert note.startswith("1 tag(s), which have no place left out of ")
        assert note.endswith("blurred of a.png.")

    def test_ellipses_lines_and_points(self, folder):
        _, mask = converted(
            folder,
            cvat(
                '<ellipse label="cell" cx="15" cy="20" rx="10" ry="5"/>',
                '<points label="nucleus" points="42,10;42,30"/>',
                '<polyline label="nucleus" points="5,34;20,34"/>',
            ),
            "annotations.xml",
        )
        # pi * 10 * 5 = 157; two discs of 79 pixels, and 15 of a line 10 wide with round ends.
        assert abs(areas(mask)[0] - 157) < 5
        assert abs(areas(mask)[1] - (2 * 79 + 150 + 79)) < 60

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (cvat('<polygon label="cell" points="1,2;nan,4;5,6"/>'), "no coordinates"),
            (cvat('<polygon label="cell" points="1,2;3"/>'), "shape 0 of a.png"),
            (cvat('<polygon points="1,2;3,4;5,6"/>'), "'label'"),
            (cvat('<cuboid label="cell" xtl1="3"/>'), "type 'cuboid' are not drawn"),
            (cvat('<box label="cell" xtl="9" ytl="1" xbr="3" ybr="4"/>'), "above 0"),
            (
                cvat('<mask label="cell" rle="9" left="0" top="0" width="99999" height="99999"/>'),
                "run lengths|pixels",
            ),
            (cvat(size=(99, 10**9)), "drawn on 1000000000x99"),
            (cvat(size=("9" * 5000, 3)), "does not say width and height"),
            ("<annotations><track/></annotations>", "CVAT for images 1.1"),
            (cvat()[:-9], "cannot be read as annotations"),
            ("<html></html>", "is in no format of annotations that is known .labelme, COCO"),
            (cvat().encode("utf-16"), "is in no format|cannot be read as annotations"),
        ],
    )
    def test_malformed_is_one_message(self, folder, content, words):
        with pytest.raises(UserError, match=words) as error:
            converted(folder, content, "annotations.xml")
        assert "1 problem(s)" in str(error.value)
        assert len(str(error.value)) < 1500

    def test_document_type_is_refused(self, folder):
        declared = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
        content = cvat('<polygon label="&x;" points="1,2;3,4;5,6"/>').replace("\n", declared)
        assert "declares a document type" in problem(folder, content, "annotations.xml")


def via(*regions, project=False, numbered=False):
    listed = {str(n): each for n, each in enumerate(regions)} if numbered else list(regions)
    files = {"a.png123": {"filename": "a.png", "size": 123, "regions": listed}}
    return {"_via_settings": {}, "_via_img_metadata": files} if project else files


def region(label, **shape):
    return {"shape_attributes": shape, "region_attributes": label}


class TestVia:
    @pytest.mark.parametrize("kinds", [{}, {"project": True}, {"numbered": True}])
    def test_every_shape_is_drawn(self, folder, kinds):
        xs, ys = zip(*SQUARE, strict=True)
        done, mask = converted(
            folder,
            via(
                region({"type": "cell"}, name="polygon", all_points_x=xs, all_points_y=ys),
                region({"type": "nucleus"}, name="rect", x=12, y=7, width=4, height=3),
                region(
                    {"type": {"cell": True, "nucleus": False}}, name="circle", cx=40, cy=30, r=8
                ),
                region(
                    *({"type": "nucleus", "note": "blurred"},),
                    **{"name": "ellipse", "cx": 15, "cy": 28, "rx": 9, "ry": 4, "theta": 1.5708},
                ),
                **kinds,
            ),
        )
        # 200 - 12 and pi * 64 = 201; 12 and pi * 36 = 113, which is 18 high and 8 wide.
        assert abs(areas(mask)[0] - (188 + 201)) < 10
        assert abs(areas(mask)[1] - (12 + 113)) < 6
        assert (mask[20:36, 15] == 2).all()
        assert done.formats == {"VIA (VGG Image Annotator)": 1}

    @pytest.mark.parametrize(
        ("one", "words"),
        [
            (region({}, name="rect", x=1, y=1, width=2, height=2), "labelled without a label"),
            (
                region({"a": "cell", "b": "nucleus"}, name="point", cx=1, cy=1),
                "'cell' or 'nucleus'",
            ),
            (region({"a": "cell"}, name="star"), "'star' are not known"),
            (region({"a": "cell"}, name="polygon", all_points_x=[1], all_points_y=[]), "zip"),
            (region({"a": "cell"}, name="rect", x=1, y="b", width=2, height=2), "shape 0"),
            (region({"a": "cell"}, x=1), "'name'"),
            ({"shape_attributes": {}}, "region_attributes"),
        ],
    )
    def test_malformed_is_one_message(self, folder, one, words):
        with pytest.raises(UserError, match=words) as error:
            converted(folder, via(one))
        assert "1 problem(s)" in str(error.value)


def task(*results, image="/data/upload/1/0a1b2c3d-a.png", **annotation):
    return {
        "id": 1,
        "data": {"image": image},
        "annotations": [{"result": list(results), **annotation}],
        "predictions": [],
    }


def result(kind, label, **value):
    labels = {f"{kind}labels" if kind else "labels": [label]}
    return {
        **{"id": "x", "from_name": "label", "to_name": "image", "type": next(iter(labels))},
        **{"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0},
        "value": value | labels,
    }


def percent(ring):
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in ring]


def encoded_brush(mask):
    """Returns Label Studio's run-length encoding of a brush, with blocks of both kinds."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask > 0] = (10, 20, 30, 255)
    values = values.ravel()
    bits = [format(len(values), "032b"), format(7, "05b")]
    bits += [format(length - 1, "04b") for length in (3, 4, 8, 16)]
    place = 0
    while place < len(values):
        ends = np.flatnonzero(values[place:] != values[place])
        count = int(ends[0]) if len(ends) else len(values) - place
        count = min(count, 2**16)
        if count > 1:
            bits.append("1" + "11" + format(count - 1, "016b") + format(values[place], "08b"))
        else:
            count = min(8, len(values) - place)
            block = "".join(format(value, "08b") for value in values[place : place + count])
            bits.append("0" + "00" + format(count - 1, "03b") + block)
        place += count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[n : n + 8], 2) for n in range(0, len(text), 8)]


class TestLabelStudio:
    def test_every_shape_is_drawn_from_percents(self, folder):
        drawn = np.zeros(SIZE, np.uint8)
        drawn[30:33, 40:45], drawn[38, 41] = 1, 1
        done, mask = converted(
            folder,
            [
                task(
                    result("polygon", "cell", points=percent(SQUARE), closed=True),
                    # 4 x 3 pixels at (12, 7).
                    result("rectangle", "nucleus", x=24, y=17.5, width=8, height=7.5, rotation=0),
                    # 10 x 5 at (10, 20), turned by 90 degrees about that corner: x from 5 to 10.
                    result("rectangle", "cell", x=20, y=50, width=20, height=12.5, rotation=90),
                    result("ellipse", "nucleus", x=50, y=75, radiusX=10, radiusY=20, rotation=0),
                    result("brush", "cell", format="rle", rle=encoded_brush(drawn)),
                )
            ],
        )
        # 200 - 12 + 50 + 16; 12 and pi * 5 * 8 = 126.
        assert areas(mask)[0] == 254
        assert abs(areas(mask)[1] - (12 + 126)) < 5
        assert (mask[20:30, 5:10] == 1).all()
        np.testing.assert_array_equal(mask[30:, 40:], drawn[30:, 40:])
        assert done.formats == {"Label Studio": 1}

    def test_labels_of_their_own_name_the_shape_of_another_tool(self, folder):
        polygon = result("polygon", "cell", points=percent(SQUARE))
        tool = polygon | {"type": "polygon", "value": {"points": percent(SQUARE)}}
        labels = result("", "cell", points=percent(SQUARE))
        choice = polygon | {"type": "choices", "value": {"choices": ["sharp"]}}
        done, mask = converted(folder, [task(tool, labels, choice)])
        assert areas(mask) == [200, 0]
        assert "1 answer(s), which are no shapes left out" in done.notes[0]

    def test_ground_truth_counts_before_the_last_and_undone_tasks_are_counted(self, folder):
        first, last = (
            {"result": [result("polygon", label, points=percent(SQUARE))]}
            for label in ("nucleus", "cell")
        )
        other = task(image="b.png", was_cancelled=True)
        one = task() | {"annotations": [first | {"ground_truth": True}, last]}
        done, mask = converted(folder, [one, other])
        assert areas(mask) == [0, 200]
        assert "1 annotation(s) of a picture that has several left out" in done.notes[0]
        assert "1 picture(s) that nobody has annotated left out" in done.notes[1]
        (folder.parent / "out" / "SegmentationClass" / "a.png").unlink()
        one["annotations"][0]["ground_truth"] = False
        assert areas(converted(folder, [one])[1]) == [200, 0]

    @pytest.mark.parametrize(
        "image", ["/data/local-files/?d=some/where/a.png", "http://x.org/some%20where/a.png?b=1"]
    )
    def test_addresses_are_looked_for_by_their_names(self, folder, image):
        polygon = result("polygon", "cell", points=percent(SQUARE))
        assert areas(converted(folder, [task(polygon, image=image)])[1]) == [200, 0]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"original_width": 0, "original_height": 0}, "no original_width"),
            ({"original_width": 51}, "drawn on 51x40"),
            ({"image_rotation": 90}, "turned by 90 degrees"),
            ({"type": "videorectangle"}, "'videorectangle' are not known"),
            ({"value": {"polygonlabels": ["cell"]}}, "'points'"),
            ({"value": {"points": [[1, 2], [3, "x"]], "polygonlabels": ["cell"]}}, "shape 0"),
            ({"value": 3}, r"result\[0\].value"),
        ],
    )
    def test_malformed_is_one_message(self, folder, change, words):
        polygon = result("polygon", "cell", points=percent(SQUARE)) | change
        with pytest.raises(UserError, match=words) as error:
            converted(folder, [task(polygon)])
        assert "1 problem(s)" in str(error.value)

    def test_brush_that_is_cut_or_of_another_size_is_refused(self):
        whole = encoded_brush(np.eye(6))
        assert brush(whole, (6, 6)).sum() == 6
        for rle, size in (
            *((whole[:-3], (6, 6)), (whole, (6, 7)), ([0, 1], (6, 6)), ([300], (6, 6))),
            *((["a"], (6, 6)), ([[1]], (6, 6)), (None, (6, 6))),
        ):
            with pytest.raises(ValueError, match=r"run lengths|brush"):
                brush(rle, size)


def feature(geometry, coordinates, name=None, **plane):
    found = {"type": geometry, "coordinates": coordinates} | ({"plane": plane} if plane else {})
    properties = {"objectType": "annotation"}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "u", "geometry": found, "properties": properties}


def closed(ring):
    return [*ring, ring[0]]


class TestGeojson:
    @pytest.mark.parametrize("as_list", [True, False])
    def test_polygons_have_holes(self, folder, as_list):
        moved = [[x + 5, y + 15] for x, y in SQUARE]
        features = [
            feature("Polygon", [closed(SQUARE), closed(HOLE)], "cell"),
            feature("MultiPolygon", [[closed(moved)], [closed(HOLE)]], "nucleus"),
        ]
        content = features if as_list else {"type": "FeatureCollection", "features": features}
        done, mask = converted(folder, content, "a.geojson")
        assert areas(mask) == [200 - 12, 200 + 12]
        assert done.formats == {"GeoJSON (QuPath)": 1}

    def test_without_a_class_it_is_the_only_one(self, folder):
        content = feature("Polygon", [closed(SQUARE)])
        done, mask = converted(folder, content, "a.png.geojson", NAMES[:2])
        assert areas(mask) == [200, 0]
        assert done.notes == ("1 shape(s) without a label taken for cell: a.png.",)

    @pytest.mark.parametrize(
        ("one", "words"),
        [
            (feature("Polygon", [closed(SQUARE)]), "labelled without a label"),
            (feature("Polygon", [closed(SQUARE)], "cell", c=-1, z=2, t=0), "plane z=2"),
            (feature("GeometryCollection", None, "cell"), "are not drawn"),
            (feature("Polygon", None, "cell"), "shape 0"),
            (feature("Polygon", [[[1, 2], [3]]], "cell"), "shape 0"),
            (feature("Polygon", [], "cell"), "no points"),
            (feature("Polygon", [[[1, 2, 3]] * 4], "cell"), "no pairs"),
            ({"type": "Feature", "geometry": None}, "geometry"),
        ],
    )
    def test_malformed_is_one_message(self, folder, one, words):
        with pytest.raises(UserError, match=words) as error:
            converted(folder, one, "a.geojson")
        assert "1 problem(s)" in str(error.value)


def roi(points, name, **values):
    found = roifile.ImagejRoi.frompoints(np.array(points), name=name)
    for key, value in values.items():
        setattr(found, key, value)
    return found


def zipped(*rois):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, each in enumerate(rois):
            archive.writestr(f"{number:04d}.roi", each.tobytes())
    return content.getvalue()


def oval(kind, left, top, width, height, name):
    bounds = {"left": left, "top": top, "right": left + width, "bottom": top + height}
    return roifile.ImagejRoi(roitype=kind, name=name, **bounds)


class TestImagej:
    def test_every_region_is_drawn(self, folder):
        path = [value for ring in (SQUARE, HOLE) for value in _path(ring)]
        composite = roifile.ImagejRoi(
            roitype=roifile.ROI_TYPE.RECT,
            name="cell-0001",
            multi_coordinates=np.array(path, np.float32),
            shape_roi_size=len(path),
        )
        text = oval(roifile.ROI_TYPE.RECT, 1, 1, 5, 5, "note")
        text.subtype = roifile.ROI_SUBTYPE.TEXT
        done, mask = converted(
            folder,
            zipped(
                composite,
                roi([[x + 15, y + 15] for x, y in SQUARE], "nucleus"),
                oval(roifile.ROI_TYPE.RECT, 0, 0, 6, 4, "cell 2"),
                oval(roifile.ROI_TYPE.OVAL, 2, 20, 16, 10, "nucleus_12"),
                # Between pixels: x from 0.25 to 3.75, the middles 0.5 to 3.5.
                roi([[0.25, 35.0], [3.75, 35.0], [3.75, 39.0], [0.25, 39.0]], "cell"),
                text,
            ),
            "a_RoiSet.zip",
        )
        # 200 - 12 + 24 + 16, and 200 and pi * 8 * 5 = 126.
        assert areas(mask)[0] == 228
        assert abs(areas(mask)[1] - 326) < 5
        assert done.formats == {"ImageJ": 1}
        assert "1 text(s) and pictures, which are no regions left out" in done.notes[0]

    def test_one_region_named_by_numbers_is_the_only_class(self, folder):
        content = roi(SQUARE, "0010-0020").tobytes()
        assert areas(converted(folder, content, "a.roi", NAMES[:2])[1]) == [200, 0]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (roi(SQUARE, "0010-0020").tobytes(), "labelled without a label"),
            (roi(SQUARE, "axon-3").tobytes(), "labelled 'axon-3' or 'axon'"),
            (roi(SQUARE, "cell").tobytes()[:70], "a.roi is damaged"),
            (roi(SQUARE, "cell", position=3).tobytes(), "1 page.*lies on page 3"),
            (roi(SQUARE, "cell", c_position=2, z_position=1).tobytes(), "hyperstack"),
            (zipped(), "without regions of ImageJ"),
            (zipped(roi(SQUARE, "cell"))[:90], "cannot be unpacked"),
            (b"Iout", r"damaged"),
            (roi(SQUARE, "cell", roitype=roifile.ROI_TYPE.ANGLE).tobytes(), "are not drawn"),
            (roi([[np.nan, 1.0], [2, 2], [3, 1]], "cell").tobytes(), "no coordinates"),
        ],
        # What roifile writes of a NaN, and the time in a ZIP file, are another each time.
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.filterwarnings("ignore:invalid value")
    def test_malformed_is_one_message(self, folder, content, words):
        with pytest.raises(UserError, match=words) as error:
            converted(folder, content, "a.roi")
        assert "1 problem(s)" in str(error.value)

    def test_missing_package_is_named(self, folder, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
        message = problem(folder, roi(SQUARE, "cell").tobytes(), "a.roi")
        assert "need roifile: pip install 'unet_core[annotations]'" in message


def _path(ring):
    for number, point in enumerate(ring):
        yield from (1 if number else 0, *point)
    yield 4
