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

    @pytest.mark.parametrize("name", ["none", "multi_worker"])
    def test_devices_of_another_strategy_are_refused(self, name):
        with pytest.raises(UserError, match="needs `strategy` mirrored"):
            devices.make_strategy(name, (0,))


class FakeGpus:
    """Records what is asked of two GPUs that are not there."""

    def __init__(self, monkeypatch):
        self.grown, self.limits = [], {}
        monkeypatch.setattr(tf.config, "list_physical_devices", self.list)
        monkeypatch.setattr(
            tf.config.experimental,
            "set_memory_growth",
            lambda gpu, on: self.grown.append((gpu, on)),
        )
        monkeypatch.setattr(tf.config, "set_logical_device_configuration", self.configure)

    def list(self, kind):
        return {"GPU": ["gpu0", "gpu1"], "CPU": ["cpu0"]}[kind]

    def configure(self, device, parts):
        self.limits[device] = [part.memory_limit for part in parts]


class TestLimitDevices:
    def test_memory_grows_on_every_gpu(self, monkeypatch):
        gpus = FakeGpus(monkeypatch)
        devices.limit_devices(memory_growth=True)
        assert gpus.grown == [("gpu0", True), ("gpu1", True)]
        assert gpus.limits == {}

    def test_limit_is_set_on_every_gpu(self, monkeypatch):
        gpus = FakeGpus(monkeypatch)
        devices.limit_devices(memory_limit_mb=3000)
        assert gpus.limits == {"gpu0": [3000], "gpu1": [3000]}

    def test_first_gpu_is_split(self, monkeypatch):
        gpus = FakeGpus(monkeypatch)
        devices.limit_devices(logical_devices=2, memory_limit_mb=500)
        assert gpus.limits == {"gpu0": [500, 500], "gpu1": [500]}

    def test_parts_of_a_gpu_have_a_size_by_default(self, monkeypatch):
        gpus = FakeGpus(monkeypatch)
        devices.limit_devices(logical_devices=2)
        assert gpus.limits == {"gpu0": [2048, 2048]}

    def test_cpu_is_split_without_a_limit(self, monkeypatch):
        gpus = FakeGpus(monkeypatch)
        monkeypatch.setattr(gpus, "list", {"GPU": [], "CPU": ["cpu0"]}.get)
        monkeypatch.setattr(tf.config, "list_physical_devices", gpus.list)
        devices.limit_devices(logical_devices=3, memory_limit_mb=500)
        assert gpus.limits == {"cpu0": [None, None, None]}

    @pytest.mark.parametrize("other", [{"memory_limit_mb": 1}, {"logical_devices": 2}])
    def test_growth_of_a_part_is_refused(self, other):
        with pytest.raises(UserError, match="`memory_growth` cannot be combined"):
            devices.limit_devices(memory_growth=True, **other)


class TestDescribeDevices:
    def test_fall_back_to_the_cpu_is_said(self):
        assert "no GPU found, so it computes on the CPU" in devices.describe_devices(
            tf.distribute.get_strategy()
        )


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
