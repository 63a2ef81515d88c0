"""A trained model made quicker for inference by equal rewrites of its parameters: same function, less to do.

What is rewritten depends on the types of modules, never on the name of a model:

* BatchNorm goes into the convolution before it; after BoTNet's attention into the projection of v, as the rows of the
  softmax sum to 1 and an average of constants is the constant.
* QuickGELU between two linear layers gives them its constants and becomes SiLU.
* Where logits come from a class token, the last block computes that token alone; features are computed as before.
* Convolutions keep their weights in the layout in which they are used (channels last).
"""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Mlp as TimmMlp
from timm.layers import QuickGELU as TimmQuickGELU
from torch import Tensor, fx, nn

from glocal.errors import GlocalError
from glocal.layers import FCUUp, Linear, MHSA2d, Mlp, NonLocal2d, QuickGELU, SelfAttention
from glocal.models._backbone import Backbone
from glocal.models._conformer_blocks import ConvBlock
from glocal.models._t2t_blocks import Block as T2TBlock
from glocal.models.botnet import BoTNet, BottleneckTransformer
from glocal.models.conformer import Conformer
from glocal.models.cvt import CvT
from glocal.models.resnet import BasicBlock, Bottleneck, ResNet
from glocal.models.t2t_vit import T2TViT
from glocal.models.vit import Block as ViTBlock
from glocal.models.vit import VisionTransformer

# For each type, the attributes whose output goes through a BatchNorm and nowhere else.
THREE = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
FOLLOWED: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ResNet: THREE[:1],
    BoTNet: THREE[:1],
    Conformer: THREE[:1],
    BasicBlock: THREE[:2],
    Bottleneck: THREE,
    BottleneckTransformer: THREE,
    ConvBlock: THREE,
    FCUUp: (("conv_project", "bn"),),
    NonLocal2d: (("out", "norm"),),
}


def optimize(model: nn.Module) -> nn.Module:
    """A copy of a model for inference: equal to ``model.eval()`` up to rounding, and quicker; it is not for training.

    Made for glocal's models. In any other module BatchNorm is folded where it provably follows a convolution, and
    convolutions get their weights channels last; what is not understood stays as it is.

    Args:
        model: any module, in training or evaluation mode; it is left as it was.

    Returns:
        A module of the same kind, in evaluation mode. Its parameters need no gradient and are not those of the
        original, so it is the original that should be saved.

    Raises:
        GlocalError: if it is no module, or has hooks, which would see other tensors than they were written for.
    """
    if not isinstance(model, nn.Module):
        raise GlocalError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise GlocalError(
                f"model: expected one without hooks, got one at {name or 'its top'} ({type(module).__name__}): it "
                "would see other tensors than before. Remove it, optimize, and put it on the result"
            )
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.zero_grad()
    with torch.no_grad():
        _fold_norms(model)
        for module in model.modules():
            if type(module) in (Mlp, TimmMlp):
                _fold_quick_gelu(module)
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
        _read_token_alone(model)
    return model


# BatchNorm


def _fold_norms(model: nn.Module) -> None:
    """Fold each BatchNorm that follows one module; a module that stands in several places is left alone."""
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for first, second in [*_declared(model), *_traced(model)]:
        before, norm = model.get_submodule(first), model.get_submodule(second)
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or norm.running_var is None:
            continue
        if places[id(before)] > 1 or places[id(norm)] > 1:
            continue
        weight, bias = (torch.ones(()), torch.zeros(())) if norm.weight is None else (norm.weight, norm.bias)
        scale = weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = bias.double() - norm.running_mean.double() * scale
        if type(before) is nn.Conv2d and before.out_channels == norm.num_features:
            model.set_submodule(first, _scaled(before, scale, shift))
        elif type(before) is MHSA2d:  # q and k as they are, v with the norm
            one = torch.ones_like(scale)
            before.qkv = _scaled(before.qkv, torch.cat((one, one, scale)), torch.cat((0 * one, 0 * one, shift)))
        else:
            continue
        model.set_submodule(second, nn.Identity())


def _scaled(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """The convolution whose output is scale x output + shift, channel by channel."""
    bias = 0.0 if conv.bias is None else conv.bias.double()
    folded = copy.copy(conv)
    folded._parameters = {
        "weight": _frozen((conv.weight.double() * scale[:, None, None, None]).to(conv.weight)),
        "bias": _frozen((bias * scale + shift).to(conv.weight)),
    }
    return folded


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _declared(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of modules and of what follows them, in sequences and in the types of `FOLLOWED`."""
    for name, module in model.named_modules():
        pairs = FOLLOWED.get(type(module), ())
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            children = [child for child, _ in module.named_children()]
            pairs = tuple(itertools.pairwise(children))
        prefix = f"{name}." if name else ""
        yield from ((prefix + first, prefix + second) for first, second in pairs)


class _Tracer(fx.Tracer):
    """Sees glocal's layers as wholes, as it does torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("glocal.") or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> list[tuple[str, str]]:
    """Names of modules called once whose output another one takes and nothing else, where the model can be traced."""
    if isinstance(model, Backbone):
        return []
    try:
        nodes = [node for node in _Tracer().trace(model).nodes if node.op == "call_module"]
    except Exception:  # whatever a model's own code raises when it is given symbols: then there is no proof
        return []
    calls = Counter(node.target for node in nodes)
    return [
        (str(node.args[0].target), str(node.target))
        for node in nodes
        if len(node.args) == 1
        and isinstance(node.args[0], fx.Node)
        and node.args[0].op == "call_module"
        and len(node.args[0].users) == 1
        and calls[node.target] == calls[node.args[0].target] == 1
    ]


# QuickGELU


def _fold_quick_gelu(mlp: Any) -> None:
    """fc2(silu(1.702 fc1(x)) / 1.702) with the constants in the layers."""
    layers = (mlp.fc1, mlp.fc2)
    if not isinstance(mlp.act, QuickGELU | TimmQuickGELU):
        return
    if any(type(layer) not in (Linear, nn.Linear) for layer in layers):
        return
    if type(getattr(mlp, "norm", nn.Identity())) is not nn.Identity:  # timm's has one
        return
    mlp.fc1, mlp.fc2 = (copy.copy(layer) for layer in layers)
    for layer in (mlp.fc1, mlp.fc2):
        layer._parameters = dict(layer._parameters)
    mlp.fc1.weight = _frozen(mlp.fc1.weight * 1.702)
    mlp.fc1.bias = None if mlp.fc1.bias is None else _frozen(mlp.fc1.bias * 1.702)
    mlp.fc2.weight = _frozen(mlp.fc2.weight / 1.702)
    mlp.act = nn.SiLU(inplace=True)


# The class token


class TokenBlock(nn.Module):
    """The last block of a ViT or T2T-ViT for the class token alone: every token is a key, one is a query."""

    def __init__(self, block: Any):
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        attn: SelfAttention = block.attn
        self.attend, self.proj = attn.attend, attn.proj
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        weight, bias, dim = attn.qkv.weight, attn.qkv.bias, attn.qkv.in_features
        self.q, self.kv = (Linear(dim, width, bias=bias is not None) for width in (dim, 2 * dim))
        self.q.weight, self.kv.weight = _frozen(weight[:dim]), _frozen(weight[dim:])
        if bias is not None:
            self.q.bias, self.kv.bias = _frozen(bias[:dim]), _frozen(bias[dim:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, dim) -> (B, 1, dim)."""
        y = self.norm1(x)
        q = self.q(y[:, :1]).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, n, 1, d)
        k, v = self.kv(y).unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        x = x[:, :1] + self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ConvTokenBlock(nn.Module):
    """The last block of a CvT for the class token alone, which the convolution of the queries does not touch."""

    def __init__(self, block: Any):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, 1 + HW, dim) -> (B, 1, dim)."""
        x = x[:, :1] + self.attn.of_prefix(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x))


class _ByToken(Backbone):
    """Logits through `last`; with another pooling, and for features, as ever."""

    last: nn.Module

    def before_last(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> what the stage before the last gives."""
        for index, stage in enumerate(self.forward_stages(x)):
            x = stage
            if index == len(self.feature_info) - 2:
                break
        return x

    def token(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 1, dim), the class token after the last block."""
        return self.last(self.before_last(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.norm(self.token(x))) if self.global_pool == "token" else super().forward(x)


class VisionTransformerByToken(_ByToken, VisionTransformer):
    """A Vision Transformer whose last block is a `TokenBlock` where logits are asked for."""


class T2TViTByToken(_ByToken, T2TViT):
    """A T2T-ViT whose last block is a `TokenBlock` where logits are asked for."""


class CvTByToken(_ByToken, CvT):
    """A CvT whose last block is a `ConvTokenBlock` where logits are asked for."""

    def token(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        stage = self.stages[-1]
        x = stage.embed(self.to_map(self.before_last(x), len(self.stages) - 2, height, width))
        height, width = x.shape[-2:]
        x = stage.tokens(x)
        for block in stage.blocks[:-1]:
            x = block(x, height, width)
        return self.last(x, height, width)


def _read_token_alone(model: nn.Module) -> None:
    """Give a model whose logits come from its class token the form above that computes no other in the end."""
    if not isinstance(model, Backbone) or model.global_pool != "token" or len(model.feature_info) < 2:
        return
    block: Any = model.get_submodule(model.feature_info[-1]["module"])
    if type(model) is CvT:
        model.last = ConvTokenBlock(model.stages[-1].blocks[-1])
        model.__class__ = CvTByToken
    elif type(block) in (ViTBlock, T2TBlock) and type(block.attn) is SelfAttention:
        by_token = {VisionTransformer: VisionTransformerByToken, T2TViT: T2TViTByToken}.get(type(model))
        if by_token is not None:
            model.last = TokenBlock(block)
            model.__class__ = by_token
