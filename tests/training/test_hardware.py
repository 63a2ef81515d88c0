import pytest
import torch
from torch import nn

from glocal.errors import GlocalError
from glocal.training.hardware import check_bf16_convolutions


class WrongInBF16(nn.Conv2d):
    """As oneDNN's on AMX: right in float32, other numbers in bfloat16."""

    def forward(self, x):
        return super().forward(x).roll(1, dims=3 if x.dtype == torch.bfloat16 else 0)


def test_a_convolution_that_is_wrong_in_bf16_is_named():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Sequential(nn.ReLU(), WrongInBF16(16, 36, 4, 4)))
    with pytest.raises(GlocalError, match=r"wrong outputs of 1\.1 .* ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16"):
        check_bf16_convolutions(model)


def test_rounding_is_no_error_and_nothing_is_drawn_or_changed():
    model = nn.Sequential(nn.Conv2d(3, 64, 7), nn.Conv2d(24, 8, 5, groups=2), nn.Conv2d(16, 8, (1, 5), dilation=6))
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    check_bf16_convolutions(model)
    assert torch.equal(state, torch.get_rng_state())
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.dtype == torch.float32
