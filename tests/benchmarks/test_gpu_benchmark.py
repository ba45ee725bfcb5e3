"""The benchmark for GPUs in its smallest size, on whatever is here."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
class TestGpu:
    def test_every_row_asked_for_has_positive_figures_in_the_file_and_the_tables(self, tmp_path):
        command = [sys.executable, "benchmarks/gpu.py", "--small", f"--output={tmp_path}"]
        done = subprocess.run(
            [*command, "--rows", "float16 xla", "float16 recompute", "float16 fit"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((tmp_path / "gpu.json").read_text())
        assert list(found["training"]) == ["float16 xla", "float16 recompute", "float16 fit"]
        assert all(row["images_per_second"] > 0 for row in found["training"].values())
        assert 0 <= found["training"]["float16 xla"]["data_wait_share"] <= 1
        assert list(found["inference"]) == ["float32", "float16", "bfloat16"]
        for batches in found["inference"].values():
            assert list(batches) == ["1", "2"]
            for figures in batches.values():
                assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        for kind, rows in (("training", 3), ("inference", 6)):
            lines = (tmp_path / f"gpu-{kind}.txt").read_text().splitlines()
            assert len(lines) == 2 + rows
