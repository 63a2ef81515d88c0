"""A validation image under each condition, for the page."""

import numpy as np
import torch
from PIL import Image

from glocal.data import DataSource, ImageError
from glocal.data.transforms import resize_crop
from glocal.recommend.disturb import CONDITIONS, disturb
from glocal.recommend.job import RECIPE
from glocal.training import load_recipe


def pictures(data: DataSource, image_size: int) -> dict[str, Image.Image]:
    """The first validation image under each condition, by name; empty if it has become unreadable.

    Args:
        data: from `glocal.data.load_data`.
        image_size: side in pixels.
    """
    try:
        image = data.val.image(0)
    except ImageError:
        return {}
    pixels = np.array(resize_crop(image, image_size, load_recipe(RECIPE).data.crop_pct))
    plain = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return {
        one.name: Image.fromarray(disturb(plain, one, torch.Generator().manual_seed(0))[0].permute(1, 2, 0).numpy())
        for one in CONDITIONS
    }
