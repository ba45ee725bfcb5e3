"""`--mode=predict` of a video, started again."""

import dataclasses
import json

import av
import numpy as np
import pytest
from helpers.brightness import make_brightness

from unet_core.errors import UserError
from unet_core.inference.masks import MOST_PROBABLE
from unet_core.inference.predictor import Predictor
from unet_core.runs import predict
from unet_core.settings.prediction import PredictionSettings


def frames_in(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_video_that_was_stopped_begins_anew_and_one_that_is_finished_stays(tmp_path, capsys):
    source, out = str(tmp_path / "a.mkv"), tmp_path / "out"
    with av.open(source, "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 12, "gray"
        for grey in (20, 90, 200):
            picture = np.full((12, 16), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode())
    settings = PredictionSettings(outputs=("mask",))
    predictor = Predictor(make_brightness())

    def run(stop=lambda: False, **changed):
        chosen = dataclasses.replace(settings, **changed)
        predict._predict_video(chosen, predictor, MOST_PROBABLE, source, out, stop)
        return capsys.readouterr().out

    asked = iter([False, True])
    run(lambda: next(asked))
    masks = out / "a_masks.mkv"
    assert frames_in(masks) == 1
    run()
    assert frames_in(masks) == 3
    assert json.loads((out / "predicted.jsonl").read_text().splitlines()[-1])["ended"]
    assert "finished before" in run()
    with pytest.raises(UserError, match=r"`alpha` \(0\.45 there, 0\.9 here\)"):
        run(alpha=0.9)
    masks.unlink()
    masks.write_bytes(b"mine")
    (out / "predicted.jsonl").unlink()
    with pytest.raises(UserError, match=r"a_masks\.mkv: there already"):
        run(overwrite=True)
    assert masks.read_bytes() == b"mine"
