"""The base class of all families: timm's model interface.

A family is image -> stages -> head. It implements `forward_stages`, which yields the output of each stage and reads as
the paper's figure; features, intermediates, pruning and gradient checkpointing are implemented here on top of it.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BackboneT = TypeVar("BackboneT", bound="Backbone")
StateDict = dict[str, Tensor]


class Backbone(nn.Module):
    """timm's model interface.

    Attributes:
        num_classes: classes of the head; 0 for none.
        num_features: channels of `forward_features`.
        head_hidden_size: input channels of the classifier.
        feature_info: one dict per stage: `num_chs`, `reduction` (its stride in pixels), `module`.
        output_norm: whether every stage has an output norm, which its map always passes.
        norm: the final norm, between the last stage and the head; the identity in families without one.
        token_path: in a model of `glocal.optimize`: gives (B, 1, dim) class tokens of (model, images), without the rest
            of the last block's output; else None.
    """

    default_out_indices: ClassVar[int | tuple[int, ...]] = (0, 1, 2, 3)
    pools: ClassVar[tuple[str, ...]] = ("avg", "")  # values of global_pool; "token" needs a class token
    num_prefix_tokens: int = 0
    global_pool: Any  # a name, or the module that pools
    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    pretrained_cfg: dict[str, Any]  # from timm

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.output_norm = False
        self.norm: nn.Module = nn.Identity()
        self.token_path: nn.Module | None = None

    # Implemented by each family.

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, in_chans, H, W) image -> the output of each stage in turn, one for each entry of `feature_info`."""
        raise NotImplementedError

    def to_map(self, x: Tensor, index: int, height: int, width: int) -> Tensor:
        """Output of the stage ``index`` -> its (B, C, h, w) map, for an image of this height and width."""
        return x

    def prune_stages(self, count: int) -> None:
        """Drop the modules of all stages after the first ``count``."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> (B, num_classes) logits, or with ``pre_logits`` the input of the classifier."""
        raise NotImplementedError

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes for none, ``global_pool=''`` for unpooled features."""
        self.set_pool(global_pool)
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_pool(self, global_pool: str | None) -> None:
        """Pool by one of `pools`; None leaves it as it is."""
        known = [pool for pool in self.pools if pool != "token" or self.num_prefix_tokens]
        if global_pool is not None and global_pool not in known:
            raise ValueError(f"global_pool: expected one of {', '.join(map(repr, known))}, got {global_pool!r}")
        if global_pool is not None:
            self.global_pool = global_pool

    @staticmethod
    def adapt_checkpoint(state_dict: StateDict, model: nn.Module) -> StateDict:
        """A checkpoint of any known release -> names and table sizes of ``model``; the heads may differ."""
        return state_dict

    @staticmethod
    def keywords_of(state_dict: StateDict) -> dict[str, Any]:
        """Keywords that a converted checkpoint needs, where its release differs from the published classifier."""
        return {}

    def norm_stage(self, x: Tensor, index: int) -> Tensor:
        """Output of the stage ``index`` through the final norm, where the norm has its width."""
        return self.norm(x)

    # Shared by all families.

    def classifiers(self) -> tuple[str, ...]:
        """Names of the classifier modules: one, or one per branch."""
        names = self.pretrained_cfg["classifier"]
        return (names,) if isinstance(names, str) else tuple(names)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the normalised output of the last stage, before pooling."""
        index = -1
        for index, stage in enumerate(self.forward_stages(x)):  # noqa: B007
            x = stage
        return self.norm_stage(x, index)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes) logits."""
        if self.token_path is not None and self.global_pool == "token":
            return self.forward_head(self.norm(self.token_path(self, x)))
        return self.forward_head(self.forward_features(x))

    def training_loss(self, x: Tensor, target: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The loss to minimise, for any training loop; a two-headed model overrides it."""
        return criterion(self(x), target)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The final features and the feature maps of some stages.

        Args:
            x: (B, in_chans, H, W) images.
            indices: of the stages to return; an int n for the last n, None for all.
            norm: apply the final norm to the maps.
            stop_early: skip the stages after the last one in ``indices``.
            output_fmt: "NCHW", the only format.
            intermediates_only: return only the maps.

        Returns:
            (features, maps), or maps; map i is (B, num_chs, ceil(H / reduction), ceil(W / reduction)) of its
            `feature_info`.

        Raises:
            ValueError: if output_fmt is another one.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        height, width = x.shape[-2:]
        maps, index = [], -1
        for index, stage in enumerate(self.forward_stages(x)):
            x = stage
            if index in taken:
                maps.append(
                    self.to_map(self.norm_stage(x, index) if norm or self.output_norm else x, index, height, width)
                )
            if stop_early and index == last:
                break
        return maps if intermediates_only else (self.norm_stage(x, index), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last stage in ``indices``; returns the non-negative indices."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        shortened = last + 1 < len(self.feature_info)
        if shortened:
            self.prune_stages(last + 1)
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if shortened or (prune_norm and not self.output_norm):  # the final norm is sized for the last stage
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    def maybe_checkpoint(self, module: Callable[..., Any], *args: Any) -> Any:
        """``module(*args)``, under `torch.utils.checkpoint` if gradient checkpointing is on."""
        return checkpoint(module, *args, use_reentrant=False) if self.grad_checkpointing else module(*args)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of storing their activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay."""
        return set()


def build(cls: type[BackboneT], name: str, pretrained: bool, kwargs: dict[str, Any], **variant: Any) -> BackboneT:
    """Build a registered variant; the caller's keywords override those of the variant."""
    return build_model_with_cfg(
        cls,
        name,
        pretrained,
        feature_cfg={"out_indices": variant.pop("out_indices", cls.default_out_indices), "feature_cls": "getter"},
        pretrained_filter_fn=cls.adapt_checkpoint,
        **{**variant, **kwargs},
    )


def cfg(**kwargs: Any) -> dict[str, Any]:
    """Configuration of a variant without released weights, by default of a ResNet evaluated as torchvision does.

    That is 224 pixels after a resize to 256, bilinear, ImageNet's mean and std.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """Images in channels-last layout on a CPU, where convolutions are faster in it; unchanged on other devices."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def init_linears(model: nn.Module) -> None:
    """Initialise linear layers: truncated normal with std 0.02, zero bias (Touvron et al. 2021)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth that grows linearly from 0 to ``rate`` over all blocks (Huang et al. 2016, §3), by stage."""
    total = max(sum(depths) - 1, 1)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [[rate * (start + i) / total for i in range(depth)] for start, depth in zip(starts, depths, strict=True)]
