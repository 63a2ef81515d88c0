"""Conformer: Local Features Coupling Global Representations, Peng et al. 2021. https://arxiv.org/abs/2105.03889

As released (github.com/pengzhiliang/Conformer, commit 815aaad), the class token that doubles at every coupling
included. Deviations: any image size (padded to whole patches), and `forward` gives the mean of the two heads' logits:
the sum that the release evaluates has the same order, but is twice as confident as the training made it.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from glocal.checkpoints import conformer as names
from glocal.layers import FCUDown, FCUUp, map_to_tokens, tokens_to_map
from glocal.models._backbone import Backbone, StateDict, build, cfg, channels_last_on_cpu, drop_path_rates, init_linears
from glocal.models._conformer_blocks import Absent, ConvBlock, ConvTransBlock, Off, Pair, TransBlock

BRANCHES = ("both", "conv", "trans")


class Conformer(Backbone):
    """A ResNet and a ViT in parallel, coupled in every block but the first (Fig. 2, Tab. 1).

    Args:
        patch_size: pixels of the image along a token; 4 x a power of 2, as the last coupling is at a quarter of it.
        base_channel: a quarter of the channels of the first stage, before ``channel_ratio``.
        channel_ratio: widens the convolution branch.
        dim: channels of a token.
        depth: blocks, a third of them in each stage.
        num_heads: heads of the transformer branch.
        mlp_ratio: hidden width of the MLP over dim.
        num_med_block: bottlenecks between the couplings of a block.
        coupling: whether the branches are coupled, for all stages or each.
        branches: "both", or only "conv" or "trans".
        upsampling: of the tokens, "nearest" or "bilinear".
        pooling: of the map, "avg" or "max".
        stem_width: channels of the stem.
        stem_stride: 4 for a 7x7 convolution and a pooling of stride 2, or 1 for a 3x3 convolution on small images.
        qkv_bias: whether q, k and v have a bias.
        num_classes: classes of each head; 0 for none.
        in_chans: channels of the image.
        global_pool: "avg" (with the class token of the other branch), or "" for the convolution branch's map.
        img_size: accepted for timm and ignored: the model has no position tables.
        drop_rate: dropout before the classifiers.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth of the transformer branch's last block, growing linearly from 0.

    Raises:
        ValueError: if branches or global_pool is unknown, depth not a multiple of 3, or patch_size too small.
    """

    default_out_indices: ClassVar[int | tuple[int, ...]] = (0, 1, 2, 3)

    def __init__(
        self,
        patch_size: int = 16,
        base_channel: int = 64,
        channel_ratio: int = 1,
        *,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_med_block: int = 0,
        coupling: bool | tuple[bool, ...] = True,
        branches: str = "both",
        upsampling: str = "nearest",
        pooling: str = "avg",
        stem_width: int = 64,
        stem_stride: int = 4,
        qkv_bias: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if branches not in BRANCHES:
            raise ValueError(f"branches: expected one of {', '.join(BRANCHES)}, got {branches!r}")
        if depth % 3 or depth < 6:
            raise ValueError(f"depth: expected a multiple of 3 from 6 on, got {depth}")
        if patch_size % (4 * stem_stride):
            raise ValueError(f"patch_size: expected a multiple of {4 * stem_stride}, got {patch_size}")
        self.branches = branches
        self.patch_size = patch_size
        couplings = coupling if isinstance(coupling, tuple) else (coupling,) * 3
        has_conv, has_trans = branches != "trans", branches != "conv"
        self.conv1 = (
            nn.Conv2d(in_chans, stem_width, 7, stride=2, padding=3, bias=False)
            if stem_stride == 4
            else nn.Conv2d(in_chans, stem_width, 3, padding=1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_stride == 4 else nn.Identity()
        stride = patch_size // stem_stride  # pixels of the first map along a token
        widths = [base_channel * channel_ratio * factor for factor in (1, 2, 4)]
        rates = drop_path_rates(drop_path_rate, (depth,))[0]

        def conv(in_chs: int, out_chs: int, step: int, project: bool) -> nn.Module:
            return ConvBlock(in_chs, out_chs, stride=step, project=project) if has_conv else Absent()

        def trans(i: int) -> nn.Module:
            kwargs: dict[str, Any] = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "dropout": attn_drop_rate}
            return TransBlock(dim, num_heads, drop_path=rates[i], **kwargs) if has_trans else nn.Identity()

        self.conv_1 = conv(stem_width, widths[0], 1, True)
        self.trans_patch_conv = nn.Conv2d(stem_width, dim, stride, stride=stride) if has_trans else nn.Identity()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if has_trans else None
        self.trans_1 = trans(0)
        blocks, chs = [], widths[0]
        for i in range(1, depth):
            stage, place = divmod(i, depth // 3)
            width, side, last = widths[stage], stride // 2**stage, i == depth - 1
            coupled = has_conv and has_trans and couplings[stage]
            blocks.append(
                ConvTransBlock(
                    conv(chs, width, 1 if place else 2, not place),
                    FCUDown(width // 4, dim, side, pooling=pooling) if coupled else Off(),
                    trans(i),
                    FCUUp(dim, width // 4, side, upsampling=upsampling) if coupled else Off(),
                    [ConvBlock(width, width) for _ in range(num_med_block * has_conv)],
                    conv(width, width, 2 if last else 1, last),
                )
            )
            chs = width
        self.conv_trans = nn.ModuleList(blocks)
        self.taps = (depth // 3 - 1, 2 * depth // 3 - 1, depth - 2, depth - 1)  # strides 4, 8, 16 and 32
        self.feature_info = [
            {
                "num_chs": widths[min(i, 2)] if has_conv else dim,
                "reduction": stem_stride * 2**i if has_conv else patch_size,
                "module": f"conv_trans.{tap - 1}",
            }
            for i, tap in enumerate(self.taps)
        ]
        self.widths = (widths[-1] if has_conv else 0, dim if has_trans else 0)
        self.num_features = self.widths[0] or dim
        self.head_hidden_size = sum(self.widths)
        self.norm = nn.LayerNorm(dim) if has_trans else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()

    def _init_weights(self) -> None:
        init_linears(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stem -> (B, 1 + hw, dim) tokens of the first block, class token first; nothing without them."""
        if self.cls_token is None:
            return x.new_zeros(())
        x = map_to_tokens(self.trans_patch_conv(x))  # (B, hw, dim)
        return self.trans_1(torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1))

    def forward_stages(self, x: Tensor) -> Iterator[Pair]:  # type: ignore[override]
        """(B, in_chans, H, W) image -> the (B, C, h, w) map and (B, 1 + tokens, dim) tokens at each tap."""
        x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        x = channels_last_on_cpu(x)
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))  # (B, 64, H / 4, W / 4)
        tokens = self.maybe_checkpoint(self.tokens, x)
        x, _ = self.maybe_checkpoint(self.conv_1, x)
        for i, block in enumerate(self.conv_trans, start=1):
            x, tokens = self.maybe_checkpoint(block, x, tokens)
            if i in self.taps:
                yield x, tokens

    def norm_stage(self, x: Pair, index: int) -> Pair:  # type: ignore[override]
        return (x[0], self.norm(x[1])) if index == len(self.taps) - 1 else x

    def to_map(self, x: Pair, index: int, height: int, width: int) -> Tensor:  # type: ignore[override]
        stride = self.feature_info[index]["reduction"]
        height, width = -(-height // stride), -(-width // stride)
        if self.branches == "trans":
            return tokens_to_map(x[1][:, 1:], height, width)
        return x[0][:, :, :height, :width]

    def pooled(self, x: Pair) -> list[Tensor]:
        """Input of each head: the averaged map, and the class token."""
        kept = [x[0].mean((2, 3)) if self.widths[0] else None, x[1][:, 0] if self.widths[1] else None]
        return [self.head_drop(branch) for branch in kept if branch is not None]

    def forward_head(self, x: Pair, pre_logits: bool = False) -> Tensor:  # type: ignore[override]
        """Features -> (B, num_classes), the mean of the heads' logits; before them (B, head_hidden_size)."""
        if not self.global_pool:
            return x[0] if self.widths[0] else x[1]
        pooled = self.pooled(x)
        if pre_logits or not self.num_classes:
            return torch.cat(pooled, dim=1)
        return torch.stack([head(branch) for head, branch in zip(self._heads(), pooled, strict=True)]).mean(0)

    def forward_branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_chans, H, W) -> (B, num_classes) logits of the convolution head and of the transformer head."""
        features: Any = self.forward_features(x)
        pooled = self.pooled(features)
        return tuple(head(branch) for head, branch in zip(self._heads(), pooled, strict=True))

    def training_loss(self, x: Tensor, target: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The mean of the two heads' losses (§3.3), as the release trains."""
        return torch.stack([criterion(logits, target) for logits in self.forward_branches(x)]).mean(0)

    def prune_stages(self, count: int) -> None:
        self.conv_trans = self.conv_trans[: self.taps[count - 1]]

    def _heads(self) -> list[nn.Module]:
        return [head for head, width in zip((self.conv_head, self.trans_head), self.widths, strict=True) if width]

    @torch.jit.ignore
    def get_classifier(self) -> Any:
        """Both heads, as in timm's two-headed models; one head if there is one branch."""
        heads = self._heads()
        return tuple(heads) if len(heads) > 1 else heads[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.set_pool(global_pool)
        self.num_classes = num_classes
        self.conv_head, self.trans_head = (
            nn.Linear(width, num_classes) if width and num_classes else nn.Identity() for width in self.widths
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set() if self.cls_token is None else {"cls_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: stem and first block, then one group per block."""
        return {
            "stem": r"^cls_token|^conv1|^bn1|^conv_1|^trans_1|^trans_patch_conv",
            "blocks": [(r"^conv_trans\.(\d+)", None), (r"^norm", (99999,))],
        }

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        return names.to_glocal(state_dict)


_CFG = cfg(interpolation="bicubic", classifier=("conv_head", "trans_head"))
_MMPRETRAIN = "https://download.openmmlab.com/mmclassification/v0/conformer/conformer-"  # the authors' weights
default_cfgs = generate_default_cfgs(
    {
        "conformer_tiny_patch16.mm_in1k": _CFG
        | {"url": _MMPRETRAIN + "tiny-p16_3rdparty_8xb128_in1k_20211206-f6860372.pth"},
        "conformer_small_patch16.mm_in1k": _CFG
        | {"url": _MMPRETRAIN + "small-p16_3rdparty_8xb128_in1k_20211206-3065dcf5.pth"},
        "conformer_small_patch32.mm_in1k": _CFG | {"url": _MMPRETRAIN + "small-p32_8xb128_in1k_20211206-947a0816.pth"},
        "conformer_base_patch16.mm_in1k": _CFG
        | {"url": _MMPRETRAIN + "base-p16_3rdparty_8xb128_in1k_20211206-bfdf8637.pth"},
    }
)


@register_model
def conformer_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-Ti: 23.5M parameters, 5.2 GMACs at 224 (Tab. 2)."""
    return build(Conformer, "conformer_tiny_patch16", pretrained, kwargs, channel_ratio=1)


@register_model
def conformer_small_patch16(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-S: 37.7M parameters, 10.6 GMACs at 224 (Tab. 2)."""
    return build(Conformer, "conformer_small_patch16", pretrained, kwargs, channel_ratio=4)


@register_model
def conformer_small_patch32(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-S/32, the backbone of the detectors: 38.9M parameters, 7.1 GMACs at 224 (Tab. 3)."""
    return build(Conformer, "conformer_small_patch32", pretrained, kwargs, channel_ratio=4, patch_size=32)


@register_model
def conformer_base_patch16(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-B: 83.3M parameters, 23.3 GMACs at 224 (Tab. 2)."""
    return build(Conformer, "conformer_base_patch16", pretrained, kwargs, channel_ratio=6, dim=576, num_heads=9)
