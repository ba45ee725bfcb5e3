"""Several networks that predict together: the mean of their probabilities.

    networks = open_networks("runs/folds")             # each of fold-0, fold-1, ...
    ensemble = Ensemble([SlidingWindow(InferenceNetwork(each.model)) for each in networks])
    probabilities = ensemble(image)                    # [H, W] -> [H, W, C]
    for first_row, of_networks in ensemble.bands_of_networks(read_rows, height, width):
        ...                                            # [N, h, W, C], top to bottom

A folder of folds is what training with `fold` all leaves.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from unet_core.errors import UserError
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import EXPORT_SETTINGS, Trained, open_trained
from unet_core.run_directory import RunDirectory
from unet_core.training.checkpoint_files import steps_in

_FOLD = re.compile(r"fold-(0|[1-9][0-9]{0,5})")
# What all networks of an ensemble must have alike.
_ALIKE = ("classes", "channels", "use_channels", "intensities", "resize")


class Ensemble:
    """Runs several networks on images of any size and averages their probabilities.

    Used as a `SlidingWindow`.

    Args:
        windows: One for each network, of equal classes and channels.

    Attributes:
        network: That of the first window, for what all have alike.
        windows: As given.
    """

    def __init__(self, windows: Sequence[SlidingWindow]):
        self.windows = tuple(windows)

    @property
    def network(self) -> InferenceNetwork:
        """The first network."""
        return self.windows[0].network

    def refresh(self) -> None:
        """Takes over the weights that the models have now."""
        for window in self.windows:
            window.refresh()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the mean class probabilities [H, W, C] float32 of `image`."""
        total = self.windows[0](image)
        for window in self.windows[1:]:
            total += window(image)
        total /= len(self.windows)
        return total

    def bands(
        self, read: Callable[[int, int], np.ndarray], height: int, width: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Gives first rows and mean probabilities of bands, as `SlidingWindow.bands`."""
        for first, of_networks in self.bands_of_networks(read, height, width):
            yield first, of_networks.mean(0)

    def bands_of_networks(
        self, read: Callable[[int, int], np.ndarray], height: int, width: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Gives first rows and the probabilities of each network, [N, h, W, C] float32.

        Each network reads the rows for itself. Arguments are those of `SlidingWindow.bands`.
        """
        streams = [window.bands(read, height, width) for window in self.windows]
        held: list[np.ndarray | None] = [None] * len(streams)
        done = 0
        while done < height:
            # Windows of different networks may end at different rows.
            bands = [next(s)[1] if h is None else h for s, h in zip(streams, held, strict=True)]
            rows = min(map(len, bands))
            yield done, np.stack([band[:rows] for band in bands])
            held = [band[rows:] if len(band) > rows else None for band in bands]
            done += rows


def fold_folders(path: str | os.PathLike) -> list[pathlib.Path]:
    """Returns fold-0, fold-1 ... of a folder of folds, as far as they are there, in order.

    Empty if `path` is itself a run or an export, or holds no folds.
    """
    path = pathlib.Path(path)
    if RunDirectory(path).holds_run() or (path / EXPORT_SETTINGS).is_file():
        return []
    found = {
        int(match[1]): folder
        for folder in path.glob("fold-*")
        if (match := _FOLD.fullmatch(folder.name)) and folder.is_dir()
    }
    return [found[number] for number in sorted(found)]


def open_networks(
    path: str | os.PathLike, *, weights: str | None = None, network: str = ""
) -> list[Trained]:
    """Returns the network of a run or an export, or those of all folds of a folder of folds.

    Args:
        path: Folder of a run, of an export, or of folds.
        weights: As for `open_trained`.
        network: As for `open_trained`.

    Raises:
        UserError: As `open_trained`; if a fold is not there or not trained, or folds differ in
            their classes, channels, scaling of intensities or sizes.
    """
    folders = fold_folders(path)
    if not folders:
        return [open_trained(path, weights=weights, network=network)]
    _check_trained(pathlib.Path(path), folders)
    opened = [open_trained(each, weights=weights, network=network) for each in folders]
    _check_alike(folders, opened)
    return opened


def _check_trained(path: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
    """Raises UserError, naming all folds without a network, if there are any."""
    runs = [RunDirectory(folder) for folder in folders]
    begun = [run for run in runs if run.holds_run()]
    counts = [run.read()[0].data.folds for run in begun]
    wanted = max([*counts, 1 + int(folders[-1].name.removeprefix("fold-"))])
    trained = {run.path.name for run in begun if steps_in(run.checkpoints)}
    missing = [f"fold-{n}" for n in range(wanted) if f"fold-{n}" not in trained]
    if missing:
        raise UserError(
            f"{path}: a folder of {wanted} folds, of which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not trained. Start the command that trained "
            "the others again, or give the `run_dir` of one fold."
        )


def _check_alike(folders: Sequence[pathlib.Path], opened: Sequence[Trained]) -> None:
    """Raises UserError, naming the runs that differ from the first, if there are any."""
    first = opened[0].config.data
    differing = [
        f"{folder.name} has {', '.join(differences)}"
        for folder, each in zip(folders, opened, strict=True)
        if (
            differences := [
                f"`{name}` {value} (not {getattr(first, name)})"
                for name in _ALIKE
                if (value := getattr(each.config.data, name)) != getattr(first, name)
            ]
        )
    ]
    if differing:
        raise UserError(
            f"{folders[0].parent}: the networks of its folds cannot be averaged, because they "
            f"differ from that of {folders[0].name}: {'; '.join(differing)}. Train these folds "
            "again with the same settings, or give the `run_dir` of one fold."
        )
