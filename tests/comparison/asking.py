"""A small comparison to ask for, and what of its results must not change."""

from pathlib import Path

from glocal.comparison import make_settings
from glocal.training import TrainConfig

RECIPE = TrainConfig.of(batch_size=20, lr=3e-3)
SCORES = ("id", "status", "top1", "top5", "ece", "nll", "per_class", "confusion", "mistakes")


def settings(models=("resnet_micro", "vit_micro"), budget="2ep", seeds=2, recipe=RECIPE, search="exhaustive", **kwargs):
    return make_settings(models, budget=budget, seeds=seeds, recipe=recipe, device="cpu", search=search, **kwargs)


def scores(results):
    return [{name: run[name] for name in SCORES} for run in results["runs"]]


def losses(results):
    return [[(p["step"], p["train_loss"], p["val_loss"]) for p in run["curve"]] for run in results["runs"]]


def model_files(out: Path):
    """By run: the bytes of the model and of its predictions."""
    names = ("model.safetensors", "predictions.safetensors", "config.json")
    return {run.name: [(run / name).read_bytes() for name in names] for run in sorted((out / "runs").iterdir())}
