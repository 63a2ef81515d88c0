"""The families, one per file. Importing this package registers every model with timm."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import is_model, model_entrypoint
from torch import Tensor, nn

from glocal.errors import GlocalError, nearest
from glocal.formatting import few
from glocal.models.botnet import BoTNet
from glocal.models.cat import CAT
from glocal.models.conformer import Conformer
from glocal.models.cvt import CvT
from glocal.models.insert import insert_attention
from glocal.models.optimization import optimize
from glocal.models.resnet import ResNet
from glocal.models.t2t_vit import T2TViT
from glocal.models.vit import VisionTransformer

from glocal.models import micro  # noqa: F401  (registers)  # isort: skip

__all__ = [
    "CAT",
    "BoTNet",
    "Conformer",
    "CvT",
    "ResNet",
    "T2TViT",
    "VisionTransformer",
    "convert_checkpoint",
    "create_model",
    "insert_attention",
    "list_models",
    "optimize",
]


def list_models(pattern: str = "*") -> list[str]:
    """Names of glocal's models that match a shell pattern, e.g. ``"botnet*"``, in timm's natural order."""
    return [
        name for name in timm.list_models(pattern) if model_entrypoint(name).__module__.startswith("glocal.models.")
    ]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """A model by its name: `timm.create_model`, with an error that lists the nearest names.

    Args:
        name: one of `list_models`, or any name of timm.
        kwargs: timm's (`pretrained`, `num_classes`, `in_chans`, `features_only`, ...) and the family's own keywords.

    Raises:
        GlocalError: if there is no such model, or no pretrained weights of it are known.
    """
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not is_model(name.split(".")[0]):
        raise GlocalError(f"model: expected a name of glocal or timm, got {name!r}{nearest(name, timm.list_models())}")
    try:
        return timm.create_model(name, **kwargs)
    except RuntimeError as error:
        if "No pretrained weights exist" not in str(error):
            raise
        name = name.split(".")[0]
        raise GlocalError(
            f"{name}: no public location of pretrained weights is known. With a file of them, convert it (`glocal "
            f"convert FILE --model {name} --out {name}.safetensors`) and give pretrained_cfg_overlay={{'file': "
            f"'{name}.safetensors'}} beside pretrained=True"
        ) from None


def convert_checkpoint(name: str, state_dict: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
    """Rename another distributor's checkpoint of a model to glocal's names.

    Recognised by their keys: the authors' releases for classification and dense prediction, mmpretrain's Conformer and
    T2T-ViT, Hugging Face's CvT, ViT and ResNet, timm's and torchvision's; alone or wrapped by a training script.

    Args:
        name: one of `list_models`.
        state_dict: the checkpoint, as a state dict or with the usual wrapping (``{"model": ...}``, ``module.``).
        kwargs: keywords of the model the checkpoint was made for, where they change its parameters (`num_classes`).

    Returns:
        A state dict that `load_state_dict` of the model takes, strictly. A backbone's checkpoint, without any head,
        gives no head and maybe no final norm: what ``create_model(name, features_only=True).model`` takes.

    Raises:
        GlocalError: if there is no such model in glocal, or an entry is left over, missing, or of another shape.
    """
    if name not in list_models():
        raise GlocalError(f"model: expected one of glocal's models, got {name!r}{nearest(name, list_models())}")
    with torch.device("meta"):
        model: Any = timm.create_model(name, **kwargs)
        converted = model.adapt_checkpoint(dict(state_dict), model)
        if keywords := model.keywords_of(converted):
            model = timm.create_model(name, **{**keywords, **kwargs})
    heads = tuple(f"{head}." for head in model.classifiers())
    expected = model.state_dict()
    if not any(key.startswith(heads) for key in converted):
        expected = {k: v for k, v in expected.items() if k in converted or not k.startswith((*heads, "norm."))}
    _check_complete(name, expected, converted)
    return converted


def _check_complete(name: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    problems = [f"missing: {key}" for key in expected if key not in got]
    problems += [f"left over: {key}" for key in got if key not in expected]
    problems += [
        f"shape: {key} expected {tuple(tensor.shape)}, got {tuple(got[key].shape)}"
        for key, tensor in expected.items()
        if key in got and got[key].shape != tensor.shape
    ]
    if problems:
        shown = few(problems, 20, "\n  ")
        raise GlocalError(f"the checkpoint is not one of {name}: {len(problems)} entries differ\n  {shown}")
