"""Files of weights that Keras has written, read without Keras: nothing in them is executed.

with open_weights("resnet50.weights.h5") as layers:
    layers["conv1_conv"]         # its arrays, which are read by `array[...]`

Three kinds, told apart by their content:

- `.weights.h5` of Keras 3. Layers are groups, whose attribute `name` is that of the layer.
- `.keras`, a zip archive that holds such a file; what else it holds is not read.
- `.h5` of Keras 2 and of `model.save("x.h5")`, such as the `*_notop.h5` of `keras.applications`:
  attributes list the names of the layers and of their weights.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import h5py
import numpy as np

from unet_core.errors import UserError, reason_of
from unet_core.files import open_to_read

MOST_BYTES = 2**32
"""No file of weights inside an archive is larger."""
_MEMBER = "model.weights.h5"
_MOST_GROUPS = 100_000
_MOST_NESTED = 50
_LONGEST_NAME = 300
# What Keras stores beside the layers of a network.
_NO_LAYERS = {"optimizer", "seed_generator", "metrics", "compiled_metrics"}

Layers = dict[str, list[h5py.Dataset]]


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Layers]:
    """Gives the arrays of each layer of a file, open for reading.

    Raises:
        UserError: If the file cannot be read, is of another kind, is damaged, or refers to what
            lies outside of it; also if reading an array in the block fails.
    """
    try:
        with open_to_read(path) as file, h5py.File(_hdf5_in(file, path), "r") as hdf5:
            layers = _Reader(path).layers(hdf5)
            if not layers:
                raise UserError(
                    f"{path}: holds no weights of layers with names. Write it again, by "
                    "`model.save_weights` of the Keras installed here."
                )
            yield layers
    except UserError:
        raise
    except Exception as error:  # zipfile and h5py raise anything.
        raise UserError(
            f"{path}: cannot be read as a file of weights ({reason_of(error)}). Give a "
            ".weights.h5, .keras or .h5 file of Keras."
        ) from error


def _hdf5_in(file: BinaryIO, path: str | os.PathLike) -> BinaryIO:
    """Returns the HDF5 file that `file` is, or that is in the archive that it is."""
    begin = file.read(4)
    file.seek(0)
    if begin == b"\x89HDF":
        return file
    if begin != b"PK\x03\x04":
        raise UserError(
            f"{path}: is no file of weights: it is neither HDF5 nor an archive of Keras. Give a "
            ".weights.h5, .keras or .h5 file of Keras."
        )
    with zipfile.ZipFile(file) as archive:
        if _MEMBER not in archive.namelist():
            raise UserError(f"{path}: holds no {_MEMBER}, so it is no .keras file with weights.")
        size = archive.getinfo(_MEMBER).file_size
        if size > MOST_BYTES:
            raise UserError(
                f"{path}: its {_MEMBER} has {size} bytes, and may have at most {MOST_BYTES}."
            )
        return io.BytesIO(archive.read(_MEMBER))


class _Reader:
    """The layers of one file.

    Args:
        path: What to call it.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = path
        self._groups = 0
        self._found: Layers = {}

    def layers(self, hdf5: h5py.File) -> Layers:
        """Returns the arrays of each layer that has some."""
        root = self._child(hdf5, "model_weights") if "model_weights" in hdf5 else hdf5
        if {"layer_names", "layer_names0"} & set(root.attrs):
            self._read_keras_2(root)
        else:
            self._read_keras_3(root, 0)
        return self._found

    def _read_keras_3(self, group: h5py.Group, nested: int) -> None:
        self._groups += 1
        if nested > _MOST_NESTED or self._groups > _MOST_GROUPS:
            raise self._refused("more groups than a network has")
        for name in group:
            child = self._child(group, name)
            if not isinstance(child, h5py.Group) or name in _NO_LAYERS:
                continue
            if name == "vars":
                self._read_variables(child)
            else:
                self._read_keras_3(child, nested + 1)

    def _read_variables(self, group: h5py.Group) -> None:
        if not (group.keys() and all(key.isdecimal() for key in group) and "name" in group.attrs):
            return
        arrays = [self._array(group, key) for key in sorted(group, key=int)]
        self._add(_text(group.attrs["name"]), arrays)

    def _read_keras_2(self, root: h5py.Group) -> None:
        for layer in _texts(root, "layer_names"):
            group = self._child(root, layer)
            arrays = {name: self._array(group, name) for name in _texts(group, "weight_names")}
            # A model inside the network stands as one layer; its layers are in the names, such as
            # stem/conv/kernel:0.
            owners = {name: name.split("/")[-2] if "/" in name else layer for name in arrays}
            for owner in dict.fromkeys(owners.values()):
                of_owner = [arrays[name] for name in arrays if owners[name] == owner]
                self._add(owner if len(set(owners.values())) > 1 else layer, of_owner)

    def _add(self, name: str, arrays: list[h5py.Dataset]) -> None:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise self._refused(f"{name[:40]!r} as the name of a layer")
        if name in self._found:
            raise self._refused(f"two layers of the name {name!r}, which cannot be told apart")
        self._found[name] = arrays

    def _array(self, group: h5py.Group, name: str) -> h5py.Dataset:
        array = self._child(group, name)
        if not isinstance(array, h5py.Dataset):
            raise self._refused(f"{name!r} in {group.name!r}, which is no array")
        if array.external or array.is_virtual:
            raise self._refused(f"{array.name!r}, whose values lie in another file")
        return array

    def _child(self, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        """Returns what `name`, which may be a path, is in `group`, following no links."""
        found = group
        for part in name.split("/"):
            kind = found.get(part, getclass=True, getlink=True)
            if kind is not h5py.HardLink:
                what = "a link" if kind else "nothing"
                raise self._refused(f"{what} in the place of {name!r} in {group.name!r}")
            found = found[part]
        return found

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"{self._path}: holds {what}. Such a file is not read as weights; write it again by "
            "`model.save_weights` of Keras."
        )


def _texts(group: h5py.Group, name: str) -> list[str]:
    """Returns the texts of an attribute, which Keras splits into several if it is long."""
    numbered = (f"{name}{number}" for number in itertools.count())
    parts = (
        [name] if name in group.attrs else itertools.takewhile(group.attrs.__contains__, numbered)
    )
    return [_text(each) for part in parts for each in np.ravel(group.attrs[part])]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
