"""Train, score and serve U-Nets with a loop written in low-level TensorFlow.

Importing this package has no effects and does not import TensorFlow. The rooms are imported one by
one:

    from unet_core import data, models, losses, metrics, training, inference, reports
"""

__version__ = "0.1.0"
