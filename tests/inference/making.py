"""Models and folders for the tests of inference."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import glocal
from glocal.data.transforms import Normalize
from glocal.models.io import ModelConfig, load_model, save_model
from tests.shapes import CLASSES, drawings


def write_model(folder, name="resnet_micro", classes=CLASSES, seed=0, size=32):
    """A model of random weights whose outputs differ well from image to image."""
    torch.manual_seed(seed)
    model = glocal.create_model(name, num_classes=len(classes), img_size=size)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    model.eval()
    with torch.no_grad():  # each class is the most probable one of some images
        pixels, _ = drawings(50, seed=0, size=size)
        images = torch.tensor(pixels)[:, None].expand(-1, 3, -1, -1)
        mean, std = (model.pretrained_cfg[key] for key in ("mean", "std"))
        logits = model(Normalize(mean, std)(images))
        head = model.get_classifier()
        head.weight.div_(logits.std(0)[:, None])
        head.bias.copy_((head.bias - logits.mean(0)) / logits.std(0))
    save_model(model, folder, ModelConfig.of_classifier(model, classes=classes, image_size=size))
    return folder


def saved_model(folder, **kwargs):
    return load_model(write_model(folder, **kwargs))


def write_images(root: Path, count=50, bad=(), size=40):
    """``root/000.png ...``; those in ``bad`` are no images."""
    root.mkdir(parents=True, exist_ok=True)
    pixels, _ = drawings(count, seed=0, size=size)
    for i, image in enumerate(pixels):
        file = root / f"{i:03d}.png"
        if i in bad:
            file.write_bytes(b"" if i % 2 else b"no image")
        else:
            Image.fromarray(np.asarray(image)).save(file)
    return root


class Crashing:
    """A store whose image of row ``culprit`` takes its process down."""

    def __init__(self, culprit):
        self.culprit = culprit

    def image(self, path, row):
        if row == self.culprit:
            import os

            os._exit(11)
        return Image.new("RGB", (32, 32), (5 * row, 0, 0))
