"""ONNX with dynamic batch and size, equal in ONNX Runtime: two shortened models; other and full ones are slow."""

import pytest
import timm
import torch

import glocal
from tests.contract.test_timm import shorter
from tests.randomized import calm, undrawn

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
FULL = ("glocal_resnet50", "botnet50", "glocal_vit_tiny_patch16_224", "t2t_vit_7", "cvt_13", "cat_tiny",
        "conformer_tiny_patch16")  # fmt: skip
QUICK = ("cvt_micro", "t2t_vit_micro")  # tests/export has others
SLOW = (*glocal.list_models("*_micro"), *FULL)
MODELS = [
    *(pytest.param(name, shorter(name), id=f"short {name}") for name in QUICK),
    *(pytest.param(name, {}, marks=pytest.mark.slow, id=name) for name in SLOW),
]


@pytest.mark.parametrize(("name", "kwargs"), MODELS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_equal_in_onnx_runtime(name, kwargs, tmp_path):
    model = calm(undrawn(timm.create_model, name, num_classes=5, **kwargs))
    dim = torch.export.Dim
    sizes = ({0: dim("b", min=1, max=64), 2: 32 * dim("h", min=1, max=32), 3: 32 * dim("w", min=1, max=32)},)
    file = tmp_path / "model.onnx"
    traced = torch.randn(2, 3, 64, 96) if "micro" in name else torch.randn(2, 3, 256, 288)
    program = torch.onnx.export(
        model, (traced,), dynamo=True, dynamic_shapes=sizes, input_names=["image"], external_data=False, verbose=False
    )
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 64, 96), (1, 3, 96, 64), (3, 3, 128, 160), (1, 3, 32, 32)):
        shape = shape if "micro" in name else (shape[0], 3, shape[2] + 192, shape[3] + 192)
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
        (got,) = session.run(None, {"image": x.numpy()})
        assert abs(torch.from_numpy(got) - expected).max() <= 1e-5 * max(1.0, expected.abs().max().item())
