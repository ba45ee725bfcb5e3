import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import pytest

from unet_core.errors import UserError
from unet_core.settings import FIELDS, KINDS, RunConfig, binding_settings
from unet_core.settings.modes import MODES

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = list(FIELDS.values())
NUMBERS = [field for field in FLAGS if KINDS[field.name].item in (int, float)]


class TestRunConfig:
    def test_defaults_are_valid(self):
        config = RunConfig.of()
        assert config.task.mode == config["mode"] == "train"
        assert config.data.channels == config["channels"] == 1

    def test_settings_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            RunConfig.of().training.seed = 1

    @pytest.mark.parametrize("field", FLAGS, ids=lambda field: field.name)
    def test_every_setting_has_help_that_is_a_sentence(self, field):
        assert field.metadata["help"][0].isupper()
        assert field.metadata["help"].endswith(".")

    @pytest.mark.parametrize(
        "field", [f for f in FLAGS if f.metadata["choices"]], ids=lambda field: field.name
    )
    def test_every_choice_is_allowed_and_nothing_else(self, field):
        is_list = KINDS[field.name].is_list
        for choice in field.metadata["choices"]:
            value = (choice,) if is_list else choice
            needed = {"sigmoid": {"classes": "cells"}, "objects": {"masks": "instances"}}
            needed = needed.get(choice, {})
            assert RunConfig.of(**{field.name: value}, **needed)[field.name] == value
        with pytest.raises(UserError) as error:
            RunConfig.of(**{field.name: ("nonsense",) if is_list else "nonsense"})
        choices = ", ".join(field.metadata["choices"])
        assert str(error.value) == f"`{field.name}` ('nonsense') must be one of {choices}."

    def test_home_folder_stands_for_a_tilde_in_every_path(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/somebody")
        paths = {field.name for field in FLAGS if field.metadata["is_path"]}
        of_folders = {"run_dir", "compare", "data_dir", "preview", "init_from", "output_dir"}
        assert paths == {*of_folders, "encoder_weights", "input", "images"}
        for name in paths:
            config = RunConfig.of(**{name: ("~/a", "b") if name == "compare" else "~/a"})
            expected = ("/home/somebody/a", "b") if name == "compare" else "/home/somebody/a"
            assert config[name] == expected

    def test_path_with_a_nul_character_is_refused(self):
        with pytest.raises(UserError, match=r"`data_dir` \('a\\x00b'\) holds a NUL character"):
            RunConfig.of(data_dir="a\0b")

    @pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
    def test_every_number_has_a_finite_range(self, field):
        assert math.isfinite(field.metadata["least"])
        assert math.isfinite(field.metadata["most"])

    @pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
    @pytest.mark.parametrize("bound", ["least", "most"])
    def test_bound_belongs_to_the_range_and_what_lies_beyond_does_not(self, field, bound):
        kind, limit = KINDS[field.name], field.metadata[bound]

        def as_value(number):
            number = kind.item(number) if math.isfinite(number) else number
            return (number,) * (2 if kind.is_pair else 1) if kind.is_list else number

        needed = {"masks": "instances"} if field.name == "border_px" else {}
        config = RunConfig.of(**{field.name: as_value(limit)}, **needed)
        assert config[field.name] == as_value(limit)
        beyond = [limit - 1, -1e308] if bound == "least" else [limit + 1, 10**30, 1e308, math.inf]
        for number in [*beyond, math.nan]:
            if kind.item is int and not isinstance(number, int):
                continue
            with pytest.raises(UserError, match=f"^`{field.name}"):
                RunConfig.of(**{field.name: as_value(number)})

    @pytest.mark.parametrize("field", FLAGS, ids=lambda field: field.name)
    def test_every_setting_is_used_by_some_mode(self, field):
        assert field.metadata["modes"]
        assert field.metadata["modes"] <= set(MODES)

    def test_number_that_is_zero_in_single_precision_is_refused(self):
        with pytest.raises(UserError, match=r"`clip_norm` \(1e-320\) must be 0 or at least 1e-12"):
            RunConfig.of(clip_norm=1e-320)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (dict(depth="3"), "`depth` ('3'): Expected `int`, got `str`."),
            (dict(depth=True), "`depth` (True): Expected `int`, got `bool`."),
            (dict(depth=2.5), "`depth` (2.5): Expected `int`, got `float`."),
            (dict(flips=1), "`flips` (1): Expected `bool | null`, got `int`."),
            (dict(outputs="mask"), "`outputs` ('mask'): Expected `array`, got `str`."),
            (dict(devices=(0, "a")), "`devices[1]` ((0, 'a')): Expected `int`, got `str`."),
        ],
    )
    def test_value_of_another_type_is_named(self, setting, message):
        with pytest.raises(UserError) as error:
            RunConfig.of(**setting)
        assert str(error.value) == message

    def test_unknown_setting_is_refused_with_the_nearest(self):
        with pytest.raises(UserError, match="`crop_sizes` is not a setting; perhaps crop_size"):
            RunConfig.of(crop_sizes=3)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (dict(crop_size=0), r"`crop_size` \(0\) must be at least 1\."),
            (dict(depth=9), r"`depth` \(9\) must be at most 8\."),
            (dict(rotation_degrees=181), r"`rotation_degrees` \(181.0\) must be at most 180\."),
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
            RunConfig.of(**setting)

    @pytest.mark.parametrize("name", ["scale", "contrast", "gamma"])
    @pytest.mark.parametrize("value", [(1.0,), (1.2, 0.8), (0.0, 1.0), (1.0, 1.1, 1.2)])
    def test_range_that_is_none_is_named_with_its_rule(self, name, value):
        with pytest.raises(UserError) as error:
            RunConfig.of(**{name: value})
        assert str(error.value) == (
            f"`{name}` ({value}) must be two numbers low,high with 0 < low <= high."
        )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"border_px": 2}, "`border_px` (2) is for masks that tell objects apart"),
            ({"layout": "objects"}, "`layout` (objects) is for masks that tell objects apart"),
            ({"masks": "instances", "stray_values": "nearest"}, "`stray_values` (nearest)"),
        ],
    )
    def test_masks_of_classes_and_of_objects_exclude_one_another(self, settings, message):
        with pytest.raises(UserError) as caught:
            RunConfig.of(**settings)
        assert message in str(caught.value)

    @pytest.mark.parametrize("name", ["scale", "contrast", "gamma"])
    def test_range_of_one_point_is_allowed(self, name):
        assert RunConfig.of(**{name: (0.9, 0.9)})[name] == (0.9, 0.9)


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
        one = RunConfig.of(seed=1, flips=True, run_dir="a", train_steps=5)
        assert one.differences(RunConfig.of(run_dir="b", train_steps=9)) == ["flips", "seed"]
        assert one.differences(one) == []


class TestStored:
    def test_settings_come_back_equal_from_json(self):
        config = RunConfig.of(scale=(0.8, 1.2), outputs=("mask",), schedule_steps=7, flips=True)
        assert RunConfig.from_stored(json.loads(json.dumps(config.stored()))) == config

    def test_what_is_not_stored_has_its_default(self):
        assert RunConfig.from_stored({"seed": 3}) == RunConfig.of(seed=3)

    @pytest.mark.parametrize(("before", "now"), [(True, "batch"), (False, "none")])
    def test_switch_of_before_is_read_as_the_normalization(self, before, now):
        assert RunConfig.from_stored({"batch_norm": before}) == RunConfig.of(normalization=now)


class TestGiven:
    def test_given_settings_are_known_and_play_no_part_in_equality(self):
        config = RunConfig.of(depth=4)
        assert config.given == {"depth"}
        assert config == RunConfig.of()


class TestImport:
    @pytest.mark.parametrize(
        "module", ["unet_core", "unet_core.settings.describe", "unet_core.door"]
    )
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
