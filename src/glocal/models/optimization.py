"""Optimise a trained model for inference by rewriting its parameters: same outputs, fewer operations.

The rewrites depend on the types of modules, never on the name of a model:

* BatchNorm is folded into the convolution before it; after BoTNet's attention into the projection of v, as the rows of
  the softmax sum to 1.
* QuickGELU between two linear layers becomes SiLU; its constants are folded into the layers.
* Where logits come from a class token, the last block computes only that token; features are computed as before.
* Convolution weights are stored channels last.
"""

import copy
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Mlp as TimmMlp
from timm.layers import QuickGELU as TimmQuickGELU
from torch import Tensor, fx, nn

from glocal.errors import GlocalError, first_line
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

# For each type: the attributes whose output is used only by a BatchNorm, and that BatchNorm.
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
    """A faster copy of a model for inference, equal to ``model.eval()`` up to rounding; not for training.

    Written for glocal's models. In any other module BatchNorm is folded where it provably follows a convolution, and
    convolution weights become channels last; all else is unchanged.

    Args:
        model: any module, in train or eval mode; left unchanged.

    Returns:
        A module of the same type, in eval mode. Its parameters are frozen and differ from the original's; save the
        original.

    Raises:
        GlocalError: if it is not a module, or has hooks, whose inputs would change.
    """
    if not isinstance(model, nn.Module):
        raise GlocalError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise GlocalError(
                f"model: expected one without hooks, got one at {name or 'the root'} ({type(module).__name__}), whose "
                "inputs would change; remove it, optimize, and register it on the result"
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
        _add_token_path(model)
    return model.eval()


# BatchNorm


def _fold_norms(model: nn.Module) -> None:
    """Fold each BatchNorm into the module before it; modules used in several places are skipped."""
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    traced, reason = _traced(model)
    for first, second in [*_declared(model), *traced]:
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
        elif type(before) is MHSA2d:  # q and k unchanged, v with the norm
            one = torch.ones_like(scale)
            before.qkv = _scaled(before.qkv, torch.cat((one, one, scale)), torch.cat((0 * one, 0 * one, shift)))
        else:
            continue
        model.set_submodule(second, nn.Identity())
    if reason and any(type(module) is nn.BatchNorm2d for module in model.modules()):
        warnings.warn(
            f"optimize: BatchNorm is folded only within nn.Sequential, as torch.fx cannot trace {type(model).__name__} "
            f"({reason}); outputs are equal all the same",
            stacklevel=3,
        )


def _scaled(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """The convolution whose output is scale x output + shift, channel by channel."""
    bias = 0.0 if conv.bias is None else conv.bias.double()
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    folded.weight = _frozen((conv.weight.double() * scale[:, None, None, None]).to(conv.weight))
    folded.bias = _frozen((bias * scale + shift).to(conv.weight))
    return folded


def _linear(like: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Of the same type, with other parameters."""
    made = type(like)(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = _frozen(weight)
    if bias is not None:
        made.bias = _frozen(bias)
    return made


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _declared(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of (module, following module), in `nn.Sequential` and in the types of `FOLLOWED`."""
    for name, module in model.named_modules():
        pairs = FOLLOWED.get(type(module), ())
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            children = [child for child, _ in module.named_children()]
            pairs = tuple(itertools.pairwise(children))
        prefix = f"{name}." if name else ""
        yield from ((prefix + first, prefix + second) for first, second in pairs)


class _Tracer(fx.Tracer):
    """Treats glocal's layers as leaf modules, like torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("glocal.") or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> tuple[list[tuple[str, str]], str]:
    """Names of (module, following module), each called once, the output of the first used only by the second.

    If the model cannot be traced, there are none, and the second value says why.
    """
    if isinstance(model, Backbone):
        return [], ""
    try:
        nodes = [node for node in _Tracer().trace(model).nodes if node.op == "call_module"]
    except Exception as error:  # foreign code may raise anything on fx proxies
        return [], first_line(error)
    calls = Counter(node.target for node in nodes)
    pairs = [
        (str(node.args[0].target), str(node.target))
        for node in nodes
        if len(node.args) == 1
        and isinstance(node.args[0], fx.Node)
        and node.args[0].op == "call_module"
        and len(node.args[0].users) == 1
        and calls[node.target] == calls[node.args[0].target] == 1
    ]
    return pairs, ""


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
    fc1, fc2 = layers
    mlp.fc1 = _linear(fc1, fc1.weight * 1.702, None if fc1.bias is None else fc1.bias * 1.702)
    mlp.fc2 = _linear(fc2, fc2.weight / 1.702, fc2.bias)
    mlp.act = nn.SiLU(inplace=True)


# The class token


class TokenBlock(nn.Module):
    """The last block of a ViT or T2T-ViT, computed only for the class token: one query, all tokens as keys."""

    def __init__(self, block: Any):
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        attn: SelfAttention = block.attn
        self.attend, self.proj = attn.attend, attn.proj
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        weight, bias, dim = attn.qkv.weight, attn.qkv.bias, attn.qkv.in_features
        self.q = _linear(attn.qkv, weight[:dim], None if bias is None else bias[:dim])
        self.kv = _linear(attn.qkv, weight[dim:], None if bias is None else bias[dim:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, dim) -> (B, 1, dim)."""
        y = self.norm1(x)
        q = self.q(y[:, :1]).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, n, 1, d)
        k, v = self.kv(y).unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        x = x[:, :1] + self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ConvTokenBlock(nn.Module):
    """The last block of a CvT, computed only for the class token, which skips the convolutional projection."""

    def __init__(self, block: Any):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, 1 + HW, dim) -> (B, 1, dim)."""
        x = x[:, :1] + self.attn.of_prefix(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x))


class TokenPath(nn.Module):
    """The class token of a ViT or T2T-ViT after its last block.

    Args:
        last: the last block, computed only for the class token.
    """

    def __init__(self, last: nn.Module):
        super().__init__()
        self.last = last

    def before_last(self, model: Backbone, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the output of the last stage but one."""
        for index, stage in enumerate(model.forward_stages(x)):
            x = stage
            if index == len(model.feature_info) - 2:
                break
        return x

    def forward(self, model: Backbone, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 1, dim)."""
        return self.last(self.before_last(model, x))


class ConvTokenPath(TokenPath):
    """The class token of a CvT after its last block."""

    def forward(self, model: Any, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 1, dim)."""
        height, width = x.shape[-2:]
        stage = model.stages[-1]
        x = stage.embed(model.to_map(self.before_last(model, x), len(model.stages) - 2, height, width))
        height, width = x.shape[-2:]
        x = stage.tokens(x)
        for block in stage.blocks[:-1]:
            x = block(x, height, width)
        return self.last(x, height, width)


def _add_token_path(model: nn.Module) -> None:
    """Let the last block compute only the class token, if logits come from that alone."""
    if not isinstance(model, Backbone) or model.token_path is not None:
        return
    if model.global_pool != "token" or len(model.feature_info) < 2:
        return
    if type(model) is CvT:
        model.token_path = ConvTokenPath(ConvTokenBlock(model.stages[-1].blocks[-1]))
    elif type(model) in (VisionTransformer, T2TViT):
        block: Any = model.get_submodule(model.feature_info[-1]["module"])
        if type(block) in (ViTBlock, T2TBlock) and type(block.attn) is SelfAttention:
            model.token_path = TokenPath(TokenBlock(block))
