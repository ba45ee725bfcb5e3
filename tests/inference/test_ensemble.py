import numpy as np
import pytest
from helpers.brightness import make_brightness

from unet_core.errors import UserError
from unet_core.inference.ensemble import Ensemble, fold_folders, open_networks
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.predictor import Predictor
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import build_network
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig


def windows(**kwargs):
    """Networks that differ: the second begins to say cell at another grey value."""
    found = []
    for shift in (0.0, -2.0, 5.0):
        model = make_brightness().model
        head = model.get_layer("head")
        head.bias.assign(np.asarray(head.bias) + shift)
        found.append(SlidingWindow(InferenceNetwork(model), **kwargs))
    return found


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (37, 21)).astype(np.uint8)


def expected(grey):
    """The mean of three logistic functions; logits are (grey - 100.5) / 20 and shifted."""
    logits = (grey.astype(float) - 100.5) / 20
    return np.mean([1 / (1 + np.exp(-(logits + shift))) for shift in (0, -2, 5)], 0)


class TestEnsemble:
    def test_probabilities_are_the_mean_of_those_of_the_networks(self, image):
        found = Ensemble(windows())(image)
        assert found.shape == (37, 21, 2)
        np.testing.assert_allclose(found[..., 1], expected(image), rtol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)

    def test_bands_of_windows_of_different_sizes_are_joined(self, image):
        small, middle, _ = windows()
        parts = [
            SlidingWindow(small.network, window_px=16),
            SlidingWindow(middle.network, window_px=24, tta="flips"),
        ]
        ensemble = Ensemble(parts)
        starts, bands = zip(
            *ensemble.bands(lambda a, b: image[a:b, :, None], *image.shape), strict=True
        )
        assert len(bands) > 2
        assert list(starts) == np.cumsum([0, *map(len, bands[:-1])]).tolist()
        np.testing.assert_allclose(np.concatenate(bands), ensemble(image), atol=1e-6)

    def test_bands_of_networks_hold_each(self, image):
        ensemble = Ensemble(windows())
        ((first, found),) = ensemble.bands_of_networks(
            lambda a, b: image[a:b, :, None], *image.shape
        )
        assert (first, found.shape) == (0, (3, 37, 21, 2))
        np.testing.assert_allclose(found[2], ensemble.windows[2](image), atol=1e-6)


def make_run(folder, fold, **settings):
    """A run of this fold without a checkpoint."""
    config = RunConfig.of(
        classes="0:membrane,255:cell",
        **{"folds": 3, "fold": str(fold), "precision": "float32", "depth": 1, "base_filters": 2}
        | settings,
    )
    run = RunDirectory(folder / f"fold-{fold}")
    run.path.mkdir(parents=True)
    run.store(config, "data")
    return run, config


@pytest.fixture
def with_weights(monkeypatch):
    """Lets every run folder pass for a trained one, of step 5."""
    monkeypatch.setattr("unet_core.inference.ensemble.steps_in", lambda _: [5])
    monkeypatch.setattr("unet_core.inference.trained.training.load_weights", lambda *_, **__: 5)


class TestFoldFolders:
    def test_folds_come_by_number_and_others_are_left_out(self, tmp_path):
        for name in ("fold-10", "fold-2", "fold-0", "fold-x", "fold-01", "other"):
            (tmp_path / name).mkdir()
        (tmp_path / "fold-1").write_text("a file")
        assert [path.name for path in fold_folders(tmp_path)] == ["fold-0", "fold-2", "fold-10"]

    def test_a_run_is_no_folder_of_folds(self, tmp_path):
        run, _ = make_run(tmp_path, 0)
        (run.path / "fold-0").mkdir()
        assert fold_folders(run.path) == []
        assert fold_folders(tmp_path / "none") == []


class TestOpenNetworks:
    def test_each_fold_is_opened(self, tmp_path, with_weights):
        for fold in range(3):
            make_run(tmp_path, fold)
        opened = open_networks(tmp_path)
        assert [each.config.data.fold for each in opened] == ["0", "1", "2"]
        assert isinstance(Predictor(tmp_path).window, Ensemble)
        assert isinstance(Predictor(tmp_path / "fold-1").window, SlidingWindow)

    def test_all_folds_that_are_not_trained_are_named_at_once(self, tmp_path):
        make_run(tmp_path, 0)
        (tmp_path / "fold-1").mkdir()
        with pytest.raises(
            UserError, match=r"3 folds, of which fold-0, fold-1, fold-2 are not trained\. Start"
        ):
            open_networks(tmp_path)

    def test_fold_that_is_missing_is_named(self, tmp_path, with_weights):
        for fold in (0, 2):
            make_run(tmp_path, fold)
        with pytest.raises(UserError, match=r"of which fold-1 is not trained"):
            open_networks(tmp_path)

    def test_folds_that_differ_are_named_with_their_values(self, tmp_path, with_weights):
        make_run(tmp_path, 0)
        make_run(tmp_path, 1, intensities="zscore")
        make_run(tmp_path, 2, channels=3)
        with pytest.raises(UserError) as error:
            open_networks(tmp_path)
        assert "fold-1 has `intensities` zscore (not range)" in str(error.value)
        assert "fold-2 has `channels` 3 (not 1)" in str(error.value)

    def test_networks_may_differ(self, tmp_path, with_weights):
        make_run(tmp_path, 0, folds=2)
        make_run(tmp_path, 1, folds=2, depth=2)
        shapes = [len(build_network(e.config).layers) for e in open_networks(tmp_path)]
        assert shapes[0] < shapes[1]
