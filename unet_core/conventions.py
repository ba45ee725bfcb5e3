"""What all rooms agree on: a mask [H, W] holds class ids from 0, and one id that is no class."""

IGNORED = 255
"""The id of a pixel that counts nowhere: not in losses, not in metrics, not in scores."""
