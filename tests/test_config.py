import dataclasses
import pathlib
import subprocess
import sys

import pytest

from unet_core.config import RunConfig, binding_settings
from unet_core.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
FIELDS = dataclasses.fields(RunConfig)


class TestRunConfig:
    def test_defaults_are_valid(self):
        config = RunConfig()
        assert config.mode == "train"
        assert config.classes == "0:membrane,255:cell"

    def test_settings_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            RunConfig().seed = 1

    @pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
    def test_every_setting_has_help_that_is_a_sentence(self, field):
        assert field.metadata["help"][0].isupper()
        assert field.metadata["help"].endswith(".")

    @pytest.mark.parametrize(
        "field", [f for f in FIELDS if f.metadata["choices"]], ids=lambda field: field.name
    )
    def test_every_choice_is_allowed_and_nothing_else(self, field):
        for choice in field.metadata["choices"]:
            assert getattr(RunConfig(**{field.name: choice}), field.name) == choice
        with pytest.raises(UserError) as error:
            RunConfig(**{field.name: "nonsense"})
        choices = ", ".join(field.metadata["choices"])
        assert str(error.value) == f"`{field.name}` ('nonsense') must be one of {choices}."

    @pytest.mark.parametrize(
        ("field", "bound"),
        [(f, b) for f in FIELDS for b in ("least", "most") if f.metadata[b] is not None],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_bound_belongs_to_the_range_and_what_lies_beyond_does_not(self, field, bound):
        limit = field.metadata[bound]
        assert getattr(RunConfig(**{field.name: limit}), field.name) == limit
        for value in (limit - 1 if bound == "least" else limit + 1, float("nan")):
            with pytest.raises(UserError) as error:
                RunConfig(**{field.name: value})
            assert str(error.value).startswith(f"`{field.name}` ({value}) must be at ")

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (dict(crop_size=0), r"`crop_size` \(0\) must be at least 1\."),
            (dict(depth=9), r"`depth` \(9\) must be at most 8\."),
            (dict(rotation_degrees=181), r"`rotation_degrees` \(181\) must be at most 180\."),
            (dict(dropout=1.0), r"`dropout` \(1.0\) must be at most 0\.99\."),
            (dict(seed=-1), r"`seed` \(-1\) must be at least 0\."),
            (dict(train_steps=0), r"`train_steps` \(0\) must be at least 1\."),
            (dict(schedule_steps=0), r"`schedule_steps` \(0\) must be at least 1\."),
            (dict(folds=-1), r"`folds` \(-1\) must be at least 0\."),
            (dict(optimizer="adam"), r"`optimizer` \('adam'\) must be one of adamw, sgd\."),
        ],
    )
    def test_value_that_breaks_its_rule_is_named_with_setting_and_rule(self, setting, message):
        with pytest.raises(UserError, match=message):
            RunConfig(**setting)

    @pytest.mark.parametrize("name", ["scale", "contrast", "gamma"])
    @pytest.mark.parametrize("value", [(1.0,), (1.2, 0.8), (0.0, 1.0), (1.0, 1.1, 1.2)])
    def test_range_that_is_none_is_named_with_its_rule(self, name, value):
        with pytest.raises(UserError) as error:
            RunConfig(**{name: value})
        assert str(error.value) == (
            f"`{name}` ({value}) must be two numbers low,high with 0 < low <= high."
        )

    @pytest.mark.parametrize("name", ["scale", "contrast", "gamma"])
    def test_range_of_one_point_is_allowed(self, name):
        assert getattr(RunConfig(**{name: (0.9, 0.9)}), name) == (0.9, 0.9)


class TestBinding:
    def test_what_changes_the_weights_binds(self):
        names = set(binding_settings())
        assert {
            "seed",
            "crop_size",
            "global_batch_size",
            "learning_rate",
            "loss",
            "precision",
            "classes",
            "fold",
            "elastic_px",
        } <= names

    def test_where_and_how_often_does_not_bind(self):
        assert not set(binding_settings()) & {
            "mode",
            "data_dir",
            "run_dir",
            "output_dir",
            "train_steps",
            "generators",
            "strategy",
            "devices",
            "logical_devices",
            "report_every_steps",
            "eval_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
        }

    def test_differences_name_the_binding_settings_that_differ(self):
        one = RunConfig(seed=1, flips=True, run_dir="a", train_steps=5)
        assert one.differences(RunConfig(run_dir="b", train_steps=9)) == ["flips", "seed"]
        assert one.differences(one) == []


class TestImport:
    @pytest.mark.parametrize("module", ["unet_core", "unet_core.config", "unet_core.errors"])
    def test_import_loads_neither_tensorflow_nor_numpy(self, module):
        code = (
            f"import sys, {module}; "
            "print(sorted({'tensorflow', 'keras', 'numpy', 'cv2'} & set(sys.modules)))"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert found.stderr == ""
        assert found.stdout == "[]\n"
