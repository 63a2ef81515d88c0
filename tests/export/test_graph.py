"""Models as graphs: the resampling that runtimes lack, what may be free, what must not be in the file."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from glocal.errors import GlocalError
from glocal.export.graph import Cast, _resample, decompose_attention, trace
from tests.randomized import calm, undrawn


@pytest.mark.parametrize("size", [(14, 14), (20, 30), (7, 9), (1, 40), (100, 3)])
def test_resampling_equals_torchs(size):
    x = torch.randn(2, 3, 14, 11)
    expected = F.interpolate(x.double(), size=size, mode="bicubic", antialias=True)
    torch.testing.assert_close(_resample(x, list(size), False, None).double(), expected, rtol=0, atol=2e-5)


def test_batch_and_size_are_free_and_no_path_is_left():
    model = calm(undrawn(timm.create_model, "vit_micro", num_classes=3))
    graph = trace(model, image_size=(32, 32), batch_size=1, dynamic=True)
    assert graph.dynamic == ("batch", "size")
    assert not [node for node in graph.program.graph.nodes if "stack_trace" in node.meta]
    run = graph.program.module()
    for shape in ((1, 3, 32, 32), (3, 3, 96, 64)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_of_one_size_keeps_it():
    model = timm.create_model("test_vit", num_classes=3, dynamic_img_size=False).eval()
    side = model.pretrained_cfg["input_size"][-1]
    graph = trace(model, image_size=(side, side), batch_size=1, dynamic=True)
    assert graph.dynamic == ("batch",)
    assert str(side) in graph.reason
    assert graph.program.module()(torch.randn(3, 3, side, side)).shape == (3, 3)
    odd = trace(calm(undrawn(timm.create_model, "resnet_micro")), image_size=(40, 40), batch_size=1, dynamic=True)
    assert odd.dynamic == ("batch",)
    assert odd.reason == "40 is not a multiple of 32"


def test_what_no_graph_can_hold_is_said():
    class Choosing(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(GlocalError, match="cannot trace the model for 32 x 32 images"):
        trace(Choosing(), image_size=(32, 32), batch_size=1, dynamic=False)


class Attending(nn.Module):
    """Attention of a kind, and an Einstein sum of it."""

    def __init__(self, bias=None, **kind):
        super().__init__()
        self.bias, self.kind = bias, kind

    def forward(self, q, k):
        bias = {"added": k[0, 0] @ k[0, 0].T, "chosen": (k[0, 0] @ k[0, 0].T > 0) | torch.eye(5, dtype=torch.bool)}
        mixed = F.scaled_dot_product_attention(q, k, 2 * k, attn_mask=bias.get(self.bias), **self.kind)
        return torch.einsum("bld,kd->blk", mixed.transpose(1, 2).reshape(2, 5, 32), k[0].flatten(1)[:, :32])


KINDS = ({}, {"scale": 0.3}, {"bias": "added"}, {"bias": "chosen"}, {"is_causal": True}, {"enable_gqa": True})


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_attention_written_out_is_torchs(kind):
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2 if "enable_gqa" in kind else 4, 5, 8)
    model = Attending(**kind)
    written = decompose_attention(torch.export.export(model, (q, k)))
    called = {str(node.target) for node in written.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "einsum" in name or "scaled_dot_product" in name]
    assert [name for name in called if "softmax" in name]
    torch.testing.assert_close(written.module()(q, k), model(q, k), rtol=1e-5, atol=1e-5)


def test_a_cast_leaves_the_model_alone():
    model = calm(undrawn(timm.create_model, "resnet_micro", num_classes=3))
    cast = Cast(model, torch.bfloat16)
    assert cast(torch.randn(2, 3, 32, 32)).dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
