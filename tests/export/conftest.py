"""A classifier that exports in a second, and what it becomes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

from glocal.export import export_model

CLASSES = ("a", 'b"\u202e', "c")


class Tiny(nn.Module):
    """Any size, three classes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 64, 4, 4), nn.BatchNorm2d(64), nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A model and exports of it: onnx, xml and pt2 of a free batch and size, fixed of four images."""
    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = Tiny().eval()

    def export(name, to, **kwargs):
        return export_model(model, root / name, to=to, image_size=32, classes=CLASSES, **kwargs)

    return SimpleNamespace(
        root=root,
        model=model,
        onnx=export("model.onnx", "onnx", dynamic=True, crop_pct=0.875, mean=(0.1, 0.2, 0.3)),
        xml=export("model.xml", "openvino", dynamic=True),
        pt2=export("model.pt2", "torch-export", dynamic=True),
        fixed=export("fixed.onnx", "onnx", batch_size=4),
    )
