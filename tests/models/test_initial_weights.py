"""The initial weights are those of the versions before: a run's numbers depend on them."""

import hashlib
import json
import pathlib

import pytest

from unet_core.models.build import make_network
from unet_core.models.layers import RowDropout

GOLDEN = json.loads(pathlib.Path(__file__).with_name("initial_weights.json").read_text())


class TestInitialWeights:
    @pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: str(golden["settings"]))
    def test_weights_and_seeds_are_bit_for_bit_the_stored_ones(self, golden):
        model = make_network(**golden["settings"])
        # The first 16 digits of the SHA-256 of the bytes of each variable, in their order.
        found = [
            (variable.path, hashlib.sha256(variable.numpy().tobytes()).hexdigest()[:16])
            for variable in model.variables
        ]
        assert found == list(golden["variables"].items())
        seeds = {x.name: x.seed for x in model.layers if isinstance(x, RowDropout)}
        assert seeds == golden["dropout_seeds"]
