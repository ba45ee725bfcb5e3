"""The flag files at the top: each is a recipe that a person starts as it is."""

import pathlib

import pytest
from absl.testing import flagsaver

from unet_core import door
from unet_core.inference.trained import build_network
from unet_core.models.build import full_size
from unet_core.models.geometry import tile_geometry
from unet_core.runs.plan import check_settings

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path.name for path in ROOT.glob("*.flags"))


@pytest.fixture
def config_of():
    """A function from a flag file to its settings, with no precision left to choose."""

    def config_of(name):
        with flagsaver.flagsaver():
            argv = door._parse_flags(["train_loop", f"--flagfile={ROOT / name}"])
            return door._config(argv).replace(precision="float32")

    return config_of


def test_there_are_the_recipes_that_people_come_for():
    assert {
        "membrane_best.flags",
        "membrane.flags",
        "paper.flags",
        "unet_medical.flags",
        "keras_seed.flags",
        "vgg16.flags",
        "camvid.flags",
        "nnunet2d.flags",
    } <= set(FILES)


@pytest.mark.parametrize("name", FILES)
class TestFlagFile:
    def test_settings_fit_one_another_and_the_network_can_be_built(self, config_of, name):
        config = config_of(name)
        check_settings(config)
        model = full_size(build_network(config))
        assert tile_geometry(model).stride == 2**config.network.depth * config.network.stem_stride

    def test_runs_of_different_recipes_have_folders_of_their_own(self, config_of, name):
        assert config_of(name).task.run_dir == f"runs/{name.removesuffix('.flags')}"
