"""What all probes share: the size of their images."""

SIDE = 32
"""Height and width in pixels: the size of the micro models, so that nothing is resampled."""
