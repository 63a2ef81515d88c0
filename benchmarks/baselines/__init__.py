"""The families as their papers' formulas read in plain PyTorch, to measure the library against.

Plain means what a researcher writes from the paper: softmax(q k^T) v with its N x N table, maps and tokens rearranged
where the paper does, no fused attention, no memory format, no folding. Nor is anything slowed down: no copy that the
formula or the authors' own way of computing it does not have. Parameters have the library's names, so that weights are
shared as they are, and dropout and stochastic depth are left out (the Performer's fixed 0.1 is in).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.baselines import botnet, cat, conformer, cvt, resnet, t2t_vit, vit
from torch import nn

BASELINES: dict[str, Callable[..., nn.Module]] = {
    name: partial(family.build, name)
    for family in (resnet, botnet, vit, t2t_vit, cvt, cat, conformer)
    for name in family.VARIANTS
}


def plain(name: str, model: nn.Module, **kwargs: Any) -> nn.Module:
    """The plain form of one of the library's models, with a copy of its weights, in its precision and mode.

    Args:
        name: a key of `BASELINES`.
        model: the library's model of that name.
        kwargs: of the family's `build`; above all ``image_size``, if the model's ``img_size`` is not the variant's own.

    Returns:
        The plain model: same parameters, statistics and tables under the same names, same function.

    Raises:
        RuntimeError: if the parameters of the two differ, as when they are made for different image sizes.
    """
    baseline = BASELINES[name](**{"num_classes": model.num_classes, **kwargs})
    parameter = next(model.parameters())
    baseline.to(parameter.device, parameter.dtype).load_state_dict(model.state_dict())
    return baseline.train(model.training)
