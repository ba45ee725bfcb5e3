"""Each format of annotations, from its files to scores and predictions of what they show."""

import json
import pathlib
import zipfile

import cv2
import numpy as np
import pytest
from helpers.program import TINY

from unet_core.data.annotations import ANNOTATIONS

CLASSES = "--classes=0:background,1:cell"
SIDE, PICTURES = 32, 4
# Of each picture 12 columns and 10 rows are a cell; labelme draws the outline too.
AREA = {"labelme": 13 * 11}


def outline(number):
    """The ring of a rectangle of 12x10 pixels, in another place of each picture."""
    left, top = 4 + number, 6 + number
    return [[left, top], [left + 12, top], [left + 12, top + 10], [left, top + 10]]


def write_labelme(folder):
    for n in range(PICTURES):
        shape = {"label": "cell", "points": outline(n), "shape_type": "polygon"}
        content = {"version": "5.4.1", "shapes": [shape], "imagePath": f"../images/{n}.png"}
        content |= {"imageData": None, "imageHeight": SIDE, "imageWidth": SIDE}
        (folder / f"{n}.json").write_text(json.dumps(content))


def write_coco(folder):
    images = [
        {"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE} for n in range(PICTURES)
    ]
    annotations = [
        {"id": n, "image_id": n, "category_id": 3, "segmentation": [np.ravel(outline(n)).tolist()]}
        for n in range(PICTURES)
    ]
    categories = [{"id": 3, "name": "cell"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


def write_cvat(folder):
    images = ""
    for n in range(PICTURES):
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline(n))
        polygon = f'<polygon label="cell" points="{points}" z_order="0"/>'
        size = f'width="{SIDE}" height="{SIDE}"'
        images += f'<image id="{n}" name="{n}.png" {size}>{polygon}</image>'
    content = f"<annotations><version>1.1</version>{images}</annotations>"
    (folder / "annotations.xml").write_text(content)


def write_via(folder):
    files = {}
    for n in range(PICTURES):
        xs, ys = zip(*outline(n), strict=True)
        shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        region = {"shape_attributes": shape, "region_attributes": {"type": "cell"}}
        files[f"{n}.png99"] = {"filename": f"{n}.png", "size": 99, "regions": [region]}
    (folder / "via.json").write_text(json.dumps(files))


def write_label_studio(folder):
    tasks = []
    for n in range(PICTURES):
        points = [[100 * x / SIDE, 100 * y / SIDE] for x, y in outline(n)]
        result = {"id": "x", "from_name": "label", "to_name": "image", "type": "polygonlabels"}
        result |= {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
        result |= {"value": {"points": points, "polygonlabels": ["cell"]}}
        task = {"id": n, "data": {"image": f"/data/upload/1/0a1b2c3d-{n}.png"}}
        tasks.append(task | {"annotations": [{"result": [result]}], "predictions": []})
    (folder / "project.json").write_text(json.dumps(tasks))


def write_geojson(folder):
    for n in range(PICTURES):
        ring = outline(n)
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": "cell"}},
        }
        content = {"type": "FeatureCollection", "features": [feature]}
        (folder / f"{n}.geojson").write_text(json.dumps(content))


def write_imagej(folder):
    roifile = pytest.importorskip("roifile", reason="needs roifile")
    for n in range(PICTURES):
        roi = roifile.ImagejRoi.frompoints(np.array(outline(n)), name="cell")
        with zipfile.ZipFile(folder / f"{n}_RoiSet.zip", "w") as archive:
            archive.writestr("0001-cell.roi", roi.tobytes())


WRITERS = {
    "labelme": write_labelme,
    "coco": write_coco,
    "cvat": write_cvat,
    "via": write_via,
    "label_studio": write_label_studio,
    "geojson": write_geojson,
    "imagej": write_imagej,
}


def test_every_format_is_here():
    assert set(WRITERS) == set(ANNOTATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_is_converted_checked_trained_on_scored_and_predicted(door, tmp_path, name):
    images, labels, voc, run = (tmp_path / each for each in ("images", "labels", "voc", "run"))
    images.mkdir()
    labels.mkdir()
    for n in range(PICTURES):
        picture = np.full((SIDE, SIDE), 40, np.uint8)
        cv2.fillPoly(picture, [np.array(outline(n), np.int32)], 200)
        cv2.imwrite(str(images / f"{n}.png"), picture)
    WRITERS[name](labels)
    area = AREA.get(name, 12 * 10)

    def succeeds(*flags):
        code, out, err = door(*flags)
        assert code == 0, err
        return out

    succeeds(
        "--mode=convert",
        *(f"--input={labels}", f"--images={images}", f"--output_dir={voc}", CLASSES),
        "--held_out_share=0.5",
    )
    data = [f"--data_dir={voc}", "--layout=voc", "--split=fixed"]
    out = succeeds("--mode=check_data", *data, CLASSES)
    # All 4 pictures, of 32 * 32 pixels each.
    assert f"value       1  cell {PICTURES * area:24d}" in out
    assert f"value       0  background {PICTURES * (SIDE * SIDE - area):18d}" in out
    assert "2 sample(s) to train on, 2 held out." in out
    assert "No problems found." in out

    recipe = [flag for flag in TINY if not flag.startswith(("--classes", "--fold"))]
    succeeds(*data, CLASSES, *recipe, "--train_steps=2", f"--run_dir={run}")
    scores = json.loads((run / "scores.json").read_text())
    succeeds(
        "--mode=evaluate", f"--run_dir={run}", f"--data_dir={voc}", f"--output_dir={run / 'e'}"
    )
    again = json.loads((run / "e" / "scores.json").read_text())
    assert again["scores"]["dice/mean"] == scores["scores"]["dice/mean"]
    succeeds(
        "--mode=predict",
        *(f"--run_dir={run}", f"--input={voc / 'JPEGImages'}", f"--output_dir={tmp_path / 'out'}"),
        "--outputs=mask",
    )
    masks = sorted(pathlib.Path(tmp_path, "out").glob("*_predict.png"))
    assert [path.name for path in masks] == [f"{n}_predict.png" for n in range(PICTURES)]
