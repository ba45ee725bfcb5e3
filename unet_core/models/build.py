"""Temporary."""

from unet_core.models.unet import make_unet


def make_network(*, encoder="unet", **kwargs):
    return make_unet(**kwargs)
