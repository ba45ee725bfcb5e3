"""Every source of images in one folder, from looking at them to predicting, resized."""

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from helpers.medical import write_dicom
from helpers.program import TINY

from unet_core.data import images
from unet_core.inference.predictor import Predictor

pytestmark = pytest.mark.slow


def pictures(number):
    """Pictures [64, 64] of a bright square on noise, and their masks."""
    rng = np.random.default_rng(number)
    masks = np.zeros((number, 64, 64), np.uint8)
    for mask in masks:
        y, x = rng.integers(0, 30, 2)
        mask[y : y + 30, x : x + 30] = 255
    return (masks // 2 + rng.integers(0, 60, masks.shape)).astype(np.uint8), masks


def write_volume(path, volume):
    """Writes pages [N, H, W] as NIfTI with pixels of 0.5 micrometres."""
    made = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([0.5, 0.5, 1, 1]))
    made.header.set_xyzt_units("micron")
    nibabel.save(made, path)


def write_zarr(path, volume):
    """Writes pages [N, H, W] as OME-Zarr with pixels of 500 nanometres."""
    root = zarr.create_group(str(path))
    root.create_array("0", data=volume)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    scale = {"type": "scale", "scale": [1.0, 500.0, 500.0]}
    sets = [{"path": "0", "coordinateTransformations": [scale]}]
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": sets}]}


@pytest.fixture
def folder(tmp_path):
    image, label = tmp_path / "data" / "image", tmp_path / "data" / "label"
    image.mkdir(parents=True)
    label.mkdir()
    of_each, masks = pictures(6)
    write_dicom(image / "a.dcm", of_each[0], PixelSpacing=[0.0005, 0.0005])
    images.write_png(label / "a.png", masks[0])
    write_volume(image / "b.nii.gz", of_each[1:3])
    write_volume(label / "b.nii", masks[1:3])
    write_zarr(image / "c.ome.zarr", of_each[3:5])
    write_zarr(label / "c.zarr", masks[3:5])
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(image / "d.ome.tif", of_each[5], metadata={"axes": "YX", **size})
    tifffile.imwrite(label / "d.tif", masks[5])
    return tmp_path


def test_all_are_checked_trained_on_scored_and_predicted_at_their_own_size(door, folder):
    data = [f"--data_dir={folder / 'data'}", "--resize=1um"]
    code, out, err = door("--mode=check_data", *data, *TINY[:2])
    assert (code, err) == (0, "")
    assert "No problems found." in out
    for kind in ("DICOM", "NIfTI", "OME-Zarr", "TIFF"):
        assert f"64x64 {kind} uint8" in out
    assert out.count("resized to 32x32") == 4
    run = [f"--run_dir={folder / 'run'}"]
    code, _, err = door(*data, *run, *TINY, "--train_steps=2")
    assert code == 0, err
    code, out, err = door("--mode=evaluate", *run)
    assert code == 0, err
    assert "Scores on 2 held-out image(s)" in out
    out_dir = folder / "out"
    code, _, err = door(
        *("--mode=predict", *run, f"--input={folder / 'data' / 'image'}"),
        *(f"--output_dir={out_dir}", "--instances=components", "--object_class=cell"),
        "--objects=csv",
    )
    assert code == 0, err
    predictor = Predictor(folder / "run")
    for name, source in {"a": "a.dcm", "b_000": "b.nii.gz", "c_000": "c.ome.zarr"}.items():
        mask = images.read_mask(out_dir / f"{name}_predict.png")
        assert mask.shape == (64, 64)
        probabilities = predictor(folder / "data" / "image" / source)
        np.testing.assert_array_equal(mask == 255, probabilities[..., 1] > probabilities[..., 0])
        assert (out_dir / f"{name}_objects.csv").is_file()
    # What is finished is known by all files of a folder that counts as one.
    code, out, _ = door(
        *("--mode=predict", *run, f"--input={folder / 'data' / 'image'}"),
        *(f"--output_dir={out_dir}", "--instances=components", "--object_class=cell"),
        "--objects=csv",
    )
    assert "6 of 6 image(s) were finished before" in out
    code, _, err = door("--mode=predict", *run, "--resize=0.5", f"--output_dir={out_dir}")
    assert code == 2
    assert "--resize (0.5) differs from that of the run (1um)" in err
