"""Networks to masks: images of any size, files, videos, scores, exports.

    from unet_core.inference import Predictor

    predictor = Predictor("runs/membrane")
    probabilities = predictor(image)

Runs, folders of folds and exports are opened alike.
"""

from unet_core.inference.ensemble import open_networks
from unet_core.inference.predictor import Predictor
from unet_core.inference.trained import open_trained

__all__ = ["Predictor", "open_networks", "open_trained"]
