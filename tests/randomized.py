"""Models with every parameter and statistic drawn anew, so that no zero or one of the initialisation hides a term."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def wild(module: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, everything in [-1, 1] (variances in [0.5, 1.5]): for single layers and blocks."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(
                0.5 if "running_var" in name else -1.0, 1.5 if "running_var" in name else 1.0, generator=generator
            )
    return module


def calm(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain and norms near one, so that fifty layers neither overflow nor vanish: for whole models."""
    generator = torch.Generator().manual_seed(seed)
    residual_gain = 0.3
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim >= 2 and not any(part in name for part in ("pos_embed", "token", "position", "pos_embedding")):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.ndim == 1 and name.endswith("weight"):
            tensor.uniform_(0.5 * residual_gain, 1.5 * residual_gain, generator=generator)
        else:
            tensor.uniform_(-0.2, 0.2, generator=generator)
    return module.eval()


class Undrawn(TorchFunctionMode):
    """Models made in it start from zeros: for tests that give every weight anew, as drawing them takes far longer."""

    DRAWS = frozenset(
        getattr(place, name)
        for place in (nn.init, torch.Tensor)
        for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
                     "erfinv_")
        if hasattr(place, name)
    )  # fmt: skip

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in self.DRAWS:
            return func(*args, **(kwargs or {}))
        tensor = args[0] if args else kwargs["tensor"]
        with torch.no_grad():
            return tensor.zero_()


def undrawn(make, *args, **kwargs):
    """``make(*args, **kwargs)`` in `Undrawn`."""
    with Undrawn():
        return make(*args, **kwargs)
