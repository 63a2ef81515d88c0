"""timm's model contract, written once.

A family is an image -> a few stages -> a head. It writes `forward_stages`, which yields what each stage gives and reads
as the paper's figure; features, intermediates, pruning and checkpointing follow from it here.
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
    """What timm and its tools ask of a model.

    Attributes:
        num_classes: classes of the head; 0 for none.
        num_features: channels of `forward_features`.
        head_hidden_size: channels that enter the classifier.
        feature_info: one dict a stage: `num_chs`, `reduction` (its stride in pixels), `module`.
        output_norm: whether the maps of all stages pass norms of their own, asked for or not.
        norm: what the last stage passes through on its way to the head; families without one leave the identity.
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

    # What a family writes.

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
        """Features -> (B, num_classes) logits, or with ``pre_logits`` what enters the classifier."""
        raise NotImplementedError

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The module that makes the logits."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on the model; 0 classes for none, ``global_pool=''`` for unpooled features."""
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
        """A checkpoint in anyone's names -> the names and table sizes of ``model``; the heads may differ."""
        return state_dict

    @staticmethod
    def keywords_of(state_dict: StateDict) -> dict[str, Any]:
        """Keywords that a converted checkpoint asks for, where its release differs from the published classifier."""
        return {}

    def norm_stage(self, x: Tensor, index: int) -> Tensor:
        """Output of the stage ``index`` through the final norm, as far as that is made for it."""
        return self.norm(x)

    # What follows from it.

    def classifiers(self) -> tuple[str, ...]:
        """Names of the modules that make the logits: one, or one a branch."""
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
        return self.forward_head(self.forward_features(x))

    def training_loss(self, x: Tensor, target: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The loss to minimise, for any training loop; a model of two heads has its own."""
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
        """The features and, beside them, the maps of some stages.

        Args:
            x: (B, in_chans, H, W) images.
            indices: stages to take: their indices, the last n if an int, all if None.
            norm: pass the maps through the final norm too.
            stop_early: do not compute the stages after the last one taken.
            output_fmt: "NCHW", the only format.
            intermediates_only: return the maps alone.

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
        """Drop what the stages at ``indices`` do not need; returns the indices, counted from the first stage."""
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

    def step(self, module: Callable[..., Any], *args: Any) -> Any:
        """``module(*args)``; with gradient checkpointing its inside is computed again in the backward pass."""
        return checkpoint(module, *args, use_reentrant=False) if self.grad_checkpointing else module(*args)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep only the outputs of blocks."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone."""
        return set()


def build(cls: type[BackboneT], name: str, pretrained: bool, kwargs: dict[str, Any], **variant: Any) -> BackboneT:
    """Make a registered variant; the caller's keywords win over the row of the table."""
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
    """The images in the layout in which CPUs convolve faster; layers keep it. On other devices it is the caller's."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def init_linears(model: nn.Module) -> None:
    """Linear layers as Transformers start them: normal of 0.02, truncated, and no bias (Touvron et al. 2021)."""
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
