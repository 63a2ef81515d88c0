"""The image size of all probes."""

SIDE = 32
"""Height and width in pixels: the size of the micro models, so that no image is resampled."""
