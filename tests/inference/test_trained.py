import json

import pytest
from helpers.brightness import make_brightness

from unet_core.errors import UserError
from unet_core.inference import trained
from unet_core.inference.trained import open_trained
from unet_core.run_directory import RunDirectory


@pytest.fixture
def export(tmp_path):
    trained = make_brightness()
    trained.model.save(tmp_path / "model.keras")
    stored = {"settings": trained.config.stored(), "step": trained.step}
    (tmp_path / "unet_core.json").write_text(json.dumps(stored))
    return tmp_path


class TestOpenTrained:
    def test_export_gives_back_network_settings_and_step(self, export):
        expected = make_brightness()
        found = open_trained(export)
        assert found.config == expected.config
        assert found.step == 7
        for ours, theirs in zip(found.model.variables, expected.model.variables, strict=True):
            assert (ours.numpy() == theirs.numpy()).all()

    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            ("last", (False, True)),
            ("best", (True, True)),
            ("last_raw", (False, False)),
            ("best_raw", (True, False)),
        ],
    )
    def test_run_gives_the_checkpoint_asked_for(self, tmp_path, monkeypatch, weights, expected):
        run = RunDirectory(tmp_path)
        run.path.mkdir(exist_ok=True)
        run.store(make_brightness().config, "fingerprint")
        asked = []

        def load_weights(directory, model, *, best, averaged):
            asked.append((directory, best, averaged))
            return 5

        monkeypatch.setattr(trained.training, "load_weights", load_weights)
        assert open_trained(tmp_path, weights=weights).step == 5
        assert asked == [(run.checkpoints, *expected)]

    def test_folder_without_a_network_is_named(self, tmp_path):
        with pytest.raises(UserError, match="holds no run"):
            open_trained(tmp_path)

    def test_export_without_weights_says_how_to_get_them(self, export):
        (export / "model.keras").unlink()
        with pytest.raises(UserError, match="export the format keras"):
            open_trained(export)

    def test_export_of_a_later_format_is_named(self, export):
        stored = json.loads((export / "unet_core.json").read_text())
        (export / "unet_core.json").write_text(json.dumps({**stored, "format": 3}))
        with pytest.raises(
            UserError, match="has format 3, and this version reads format 0 and 1 and 2"
        ):
            open_trained(export)

    @pytest.mark.parametrize("name", ["model.keras", "unet_core.json"])
    def test_damaged_export_is_one_message(self, export, name):
        (export / name).write_bytes(b"damaged")
        with pytest.raises(UserError, match=r"cannot be read as (an|the settings of an) export"):
            open_trained(export)
