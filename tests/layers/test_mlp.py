import torch

from glocal.layers import QuickGELU


def test_quick_gelu_is_its_formula_with_its_gradient():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(QuickGELU(), (x,))
