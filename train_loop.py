"""Trains, evaluates and serves segmentation networks: `python train_loop.py --help`."""

from unet_core import door

if __name__ == "__main__":
    door.console()
