import pytest
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training import devices


class TestMakeStrategy:
    def test_none_is_the_current_one(self):
        assert devices.make_strategy("none").num_replicas_in_sync == 1

    def test_mirrored_takes_the_devices_named(self):
        assert devices.make_strategy("mirrored", (0, 2)).num_replicas_in_sync == 2

    def test_mirrored_takes_all_by_default(self):
        count = len(tf.config.list_logical_devices("CPU"))
        assert devices.make_strategy("mirrored").num_replicas_in_sync == count

    def test_missing_device_lists_those_there_are(self):
        with pytest.raises(UserError, match=r"no device 9. There are: 0 \(.*CPU:0\), 1 "):
            devices.make_strategy("mirrored", (9,))


class TestChoosePrecision:
    @pytest.mark.parametrize(
        ("features", "expected"),
        [
            ({"amx_bf16", "avx512_bf16"}, "bfloat16"),
            ({"avx512_bf16"}, "bfloat16"),
            ({"avx2"}, "float32"),
        ],
    )
    def test_cpu_features_decide(self, monkeypatch, features, expected):
        monkeypatch.setattr(devices, "_cpu_features", lambda: frozenset(features))
        precision, reason = devices.choose_precision()
        assert precision == expected
        assert "CPU" in reason

    @pytest.mark.parametrize(
        ("capability", "expected"),
        [((9, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")],
    )
    def test_gpu_generation_decides(self, monkeypatch, capability, expected):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["GPU"])
        monkeypatch.setattr(
            tf.config.experimental,
            "get_device_details",
            lambda _: {"compute_capability": capability},
        )
        assert devices.choose_precision()[0] == expected
