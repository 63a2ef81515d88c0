"""Settings of a comparison, checked before it starts."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from glocal.comparison.cheapest import CostName
from glocal.comparison.limits import CostLimits, check_runtime
from glocal.comparison.metric import Metric
from glocal.comparison.metrics import METRICS
from glocal.errors import GlocalError, check_choice
from glocal.files import sha256
from glocal.heads.settings import HEADS
from glocal.heads.settings import IMAGE_SIZES as HEAD_IMAGE_SIZES
from glocal.models.creation import Weights, check_model, default_image_size, has_weights
from glocal.models.io import TaskName, find_model
from glocal.models.micro import MICRO_MODELS
from glocal.tasks.heads import MEANINGLESS
from glocal.training import DEFAULT_RECIPES, Budget, HeadConfig, Mode, TrainConfig, load_recipe, resolve_device
from glocal.training.trainer import CURVE_POINTS, POINTS_PER_EPOCH

IMAGE_SIZES = range(8, 1025)
MAX_SEEDS = 100
DEFAULT_BUDGET, DEFAULT_SEEDS = "5ep", 3
DEFAULT_HEADS = {"detection": "faster_rcnn", "segmentation": "semantic_fpn"}
CONVERGED = "converged"
"""The budget of a probe."""
NOT_COMPARED = ("epochs", "image_size", "checkpoint_every_steps", "log_every_steps", "evaluate_every_epochs")
"""Settings of a recipe that do not apply to a comparison."""
RATES = (0.25, 1.0, 4.0)
"""Multiples of the recipe's learning rate that are tried for each model."""
Search = Literal["race", "exhaustive"]
OF_PROBE = ("image_size", "crop_pct", "batch_size")
"""Settings of a recipe that apply to a probe; the batch size to its costs."""


@dataclass(frozen=True)
class Run:
    """One model trained on one fraction of the training set with one seed.

    Attributes:
        model: its name.
        fraction: of the training set.
        seed: of all that is random.
        rate: of a trial (trials.py): its learning rate, as a multiple of the recipe's.
    """

    model: str
    fraction: float
    seed: int
    rate: float | None = None

    @property
    def id(self) -> str:
        """Name of the run's folder, such as ``resnet_micro-f1-s0``; of a trial ``resnet_micro-lr0.25``."""
        name = file_safe(self.model)
        return f"{name}-f{self.fraction:g}-s{self.seed}" if self.rate is None else f"{name}-lr{self.rate:g}"


@dataclass(frozen=True)
class ComparisonSettings:
    """Checked settings of a comparison, see `make_settings`.

    Attributes:
        models: names in timm, including ours.
        budget: of each run; None for probes, which are fitted until they have converged.
        seeds: of each model.
        mode: ``scratch``; ``finetune`` from weights; ``probe`` of a frozen backbone: `fit_probe`.
        weights: by model: a checkpoint to start from; models without one start from timm's own pretrained weights.
        image_size: side in pixels; of several sizes the largest.
        fractions: of the training set, largest first.
        recipe: of each run.
        device: such as ``cpu`` or ``cuda``.
        on_error: at unreadable images, ``stop`` or ``skip``.
        task: ``classification``, ``detection`` or ``segmentation``.
        head: the detector or segmenter; each model is its backbone.
        cost: by which the verdict takes the cheapest of the ties; a comparison can be judged again by another one.
        search: ``race``: models that can no longer be the answer leave (race.py); ``exhaustive``: all runs.
        image_sizes: by model, of those that have another size than ``image_size``.
        rates: learning rates that are tried for each model before the race (trials.py), as multiples of the recipe's;
            none or one: that of the recipe for all.
        limits: on the cost of the model to take; a comparison can be judged again by others.
    """

    models: tuple[str, ...]
    budget: Budget | None
    seeds: tuple[int, ...]
    mode: Mode
    weights: Mapping[str, Path]
    image_size: int
    fractions: tuple[float, ...]
    recipe: TrainConfig
    device: str
    on_error: Literal["stop", "skip"]
    task: TaskName = "classification"
    head: HeadConfig | None = None
    cost: CostName = "latency"
    search: Search = "exhaustive"
    image_sizes: Mapping[str, int] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    limits: CostLimits = field(default_factory=CostLimits)

    def size_of(self, model: str) -> int:
        """The side of a model's images, in pixels."""
        return self.image_sizes.get(model, self.image_size)

    @property
    def num_evaluations(self) -> int:
        """Evaluations of a run within its budget."""
        if self.budget is None or self.budget.unit != "ep":
            return CURVE_POINTS
        return max(1, min(CURVE_POINTS, math.floor(POINTS_PER_EPOCH * self.budget.amount)))

    @property
    def metric(self) -> Metric:
        """The ranking metric."""
        return METRICS[self.task]

    @property
    def asked(self) -> str:
        """The budget of each run in words."""
        return CONVERGED if self.budget is None else str(self.budget)

    def weights_of(self, model: str) -> Weights:
        """The initial weights of a model."""
        return None if self.mode == "scratch" else self.weights.get(model, "pretrained")

    def runs(self) -> Iterator[Run]:
        """All runs; all models of a seed before the next seed, so that a stopped comparison is still comparable."""
        for fraction in self.fractions:
            for seed in self.seeds:
                for model in self.models:
                    yield Run(model, fraction, seed)

    def describe(self) -> dict[str, Any]:
        """The settings as JSON; weights by the digest of their file."""
        head = {} if self.head is None else {"task": self.task, "head": asdict(self.head)}
        left_out = NOT_COMPARED if self.head is None else (*NOT_COMPARED, *MEANINGLESS)
        return {
            **head,
            "models": list(self.models),
            "budget": self.asked,
            "seeds": list(self.seeds),
            "mode": self.mode,
            "weights": {model: sha256(path) for model, path in self.weights.items()},
            "image_size": self.image_size,
            **({"image_sizes": dict(self.image_sizes)} if self.image_sizes else {}),
            "fractions": list(self.fractions),
            **({"rates": list(self.rates)} if self.rates else {}),
            "device": self.device,
            "recipe": {k: v for k, v in self.recipe.to_recipe().items() if k not in left_out},
        }


def make_settings(
    models: Sequence[str] = MICRO_MODELS,
    *,
    budget: str | None = None,
    seeds: int | None = None,
    mode: Mode = "scratch",
    weights: Mapping[str, Path] | None = None,
    image_size: int | Mapping[str, int] | None = None,
    fractions: Sequence[float] = (1.0,),
    recipe: TrainConfig | None = None,
    device: str = "auto",
    on_error: Literal["stop", "skip"] = "stop",
    task: TaskName = "classification",
    head: HeadConfig | None = None,
    cost: CostName = "latency",
    search: Search | None = None,
    rates: Sequence[float] | None = None,
    limits: CostLimits | None = None,
) -> ComparisonSettings:
    """Check a request and fill in its defaults.

    Args:
        models: names in ``timm.list_models()``; with a head, its backbones.
        budget: of each run, see `glocal.training.Budget`; by default the epochs of ``recipe``, else 5 epochs. Not for
            ``probe``.
        seeds: number of seeds; 3 means 0, 1 and 2, the default. A probe has nothing random: 1.
        mode: see `ComparisonSettings`.
        weights: by model: safetensors or a .pth of tensors; for ``finetune`` and ``probe``.
        image_size: side in pixels, for all or by model; by default the recipe's, else the largest default of the
            models. With a head, the shorter side of the resized images.
        fractions: of the training set, each above 0 and at most 1.
        recipe: by default that of the mode, or of the task.
        device: ``auto`` for CUDA, else Apple's MPS, else the CPU.
        on_error: on unreadable images, ``stop``, or ``skip`` and list them.
        task: see `ComparisonSettings`.
        head: for detection and segmentation; by default Faster R-CNN or Semantic FPN.
        cost: that decides between ties: ``latency`` at batch 1, ``throughput`` at a larger batch, ``memory`` in
            training, or ``macs``.
        search: see `ComparisonSettings`; by default ``race`` with several seeds and a budget in epochs or FLOP.
        rates: see `ComparisonSettings`; by default `RATES` for classifiers that are fine-tuned.
        limits: see `ComparisonSettings`; by default none.

    Raises:
        GlocalError: for invalid arguments.
    """
    check_choice("task", task, tuple(METRICS))
    if task in HEADS:
        head = head or HeadConfig(DEFAULT_HEADS[task])
        check_choice("detector" if task == "detection" else "segmenter", head.head, HEADS[task])
        weights = {model: find_model(path) for model, path in (weights or {}).items()}
    weights = dict(weights or {})
    _check_models(models, with_keywords=head is None)
    check_choice("mode", mode, get_args(Mode))
    if head is not None and mode == "probe":
        raise GlocalError(
            f"mode: probe is for classification; for {task}, `freeze: [backbone]` in a recipe trains only the head"
        )
    check_choice("cost", cost, get_args(CostName))
    check_choice("on-error", on_error, ("stop", "skip"))
    if mode == "probe":
        _check_probe(budget, seeds, recipe)
    _check_weights(models, mode, weights)
    limits = CostLimits() if limits is None else limits
    _check_limits(limits, task)
    seeds = seeds if seeds is not None else 1 if mode == "probe" else DEFAULT_SEEDS
    if not 1 <= seeds <= MAX_SEEDS:
        raise GlocalError(f"seeds: expected a number from 1 to {MAX_SEEDS}, got {seeds}")
    if not fractions or not all(0 < f <= 1 for f in fractions) or len(set(fractions)) < len(fractions):
        shown = ",".join(f"{f:g}" for f in fractions)
        raise GlocalError(
            f"fraction: expected distinct numbers above 0 and at most 1, such as 1.0,0.3,0.1; got {shown}"
        )
    if budget is None and mode != "probe":
        budget = DEFAULT_BUDGET if recipe is None else f"{recipe.schedule.epochs:g}ep"
    recipe = recipe or load_recipe(DEFAULT_RECIPES[mode if head is None else task])
    sizes = _image_sizes(models, image_size or recipe.data.image_size or None, head)
    parsed = None if budget is None else Budget.parse(budget)
    return ComparisonSettings(
        models=tuple(models),
        budget=parsed,
        seeds=tuple(range(seeds)),
        mode=mode,
        weights=weights,
        image_size=max(sizes.values()),
        image_sizes=sizes if len(set(sizes.values())) > 1 else {},
        fractions=tuple(sorted(fractions, reverse=True)),
        recipe=recipe,
        device=resolve_device(device),
        on_error=on_error,
        task=task,
        head=head,
        cost=cost,
        search=_choose_search(search, parsed, mode, seeds, len(fractions), len(models)),
        rates=_choose_rates(rates, mode, head),
        limits=limits,
    )


def _image_sizes(
    models: Sequence[str], image_size: int | Mapping[str, int] | None, head: HeadConfig | None
) -> dict[str, int]:
    """The side of each model's images."""
    if image_size is None:
        image_size = max(default_image_size(model) for model in models)
    given = image_size if isinstance(image_size, Mapping) else dict.fromkeys(models, image_size)
    allowed = IMAGE_SIZES if head is None else HEAD_IMAGE_SIZES
    for size in given.values():
        if size not in allowed:
            raise GlocalError(f"image size: expected {allowed[0]} to {allowed[-1]} pixels, got {size}")
    return {model: given[model] for model in models}


def _choose_rates(rates: Sequence[float] | None, mode: Mode, head: HeadConfig | None) -> tuple[float, ...]:
    """By default several where loaded weights are fine-tuned: there one rate for all is unfair."""
    if rates is None:
        return RATES if mode == "finetune" and head is None else ()
    if mode == "probe" or head is not None:
        raise GlocalError(
            "rates: learning rates are tried for classifiers that are trained, by --mode finetune or scratch"
        )
    if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        shown = ",".join(f"{rate:g}" for rate in rates)
        raise GlocalError(
            f"rates: expected distinct multiples of the recipe's learning rate, such as 0.25,1,4; got {shown}"
        )
    return tuple(sorted(rates)) if len(rates) > 1 or rates[0] != 1 else ()


def _choose_search(
    search: Search | None, budget: Budget | None, mode: Mode, num_seeds: int, num_fractions: int, num_models: int
) -> Search:
    """Race by default, where there is something to race and every decision depends on steps alone."""
    reasons = {
        "--mode probe is fitted at once": mode == "probe",
        "several fractions of the training images are to be compared whole": num_fractions > 1,
        "one seed does not show how much seeds differ": num_seeds == 1,
        "a budget in seconds depends on the clock": budget is not None and budget.unit == "s",
    }
    if search is None:
        return "exhaustive" if num_models == 1 or any(reasons.values()) else "race"
    check_choice("search", search, get_args(Search))
    for reason, holds in reasons.items():
        if search == "race" and holds:
            raise GlocalError(f"search: {reason}; use --search exhaustive")
    return search


def _check_models(models: Sequence[str], *, with_keywords: bool) -> None:
    if not models:
        raise GlocalError("models: expected at least one name; `glocal models` lists ours")
    for model in models:
        check_model(model, with_keywords=with_keywords)
        if models.count(model) > 1:
            raise GlocalError(f"models: expected each name once, got {model!r} twice")


def _check_weights(models: Sequence[str], mode: Mode, weights: Mapping[str, Path]) -> None:
    for model, path in weights.items():
        if mode == "scratch":
            raise GlocalError(
                "weights: expected --mode finetune or probe, got scratch, which starts from random weights"
            )
        if model not in models:
            raise GlocalError(f"weights: expected one of the compared models ({', '.join(models)}), got {model!r}")
        if not path.is_file():
            raise GlocalError(f"weights of {model}: no file {path}")
    if mode != "scratch":
        for model in models:
            if model not in weights and not has_weights(model):
                raise GlocalError(
                    f"{mode} needs weights, and {model} has no pretrained ones: use --weights {model}=FILE"
                )


def _check_limits(limits: CostLimits, task: TaskName) -> None:
    """Reject a runtime that nothing is measured in, that is missing, or that the task cannot be exported to."""
    if limits.runtime == "eager":
        return
    if not limits.needs_runtime:
        raise GlocalError(
            f"runtime: {limits.runtime} is where time and file are measured; expected a limit on one of them: "
            "--max-latency or --max-file"
        )
    if task != "classification":
        raise GlocalError(f"runtime: expected eager for {task}, got {limits.runtime}, which classifiers run in")
    check_runtime(limits.runtime)


def _check_probe(budget: str | None, seeds: int | None, recipe: TrainConfig | None) -> None:
    """Reject what a probe would ignore."""
    if budget is not None:
        raise GlocalError(f"budget: a probe is fitted until it has converged; expected no --budget, got {budget}")
    if seeds not in (None, 1):
        raise GlocalError(
            f"seeds: a probe has nothing random: each seed would give the same result; expected 1 or none, got {seeds}"
        )
    if recipe is not None:
        usual = load_recipe(DEFAULT_RECIPES["probe"]).to_recipe()
        given = [k for k, v in recipe.to_recipe().items() if v != usual[k] and k not in (*OF_PROBE, *NOT_COMPARED)]
        if given:
            raise GlocalError(
                f"recipe: a probe is a logistic regression, which takes {', '.join(OF_PROBE)}; got {', '.join(given)}"
            )


def file_safe(name: str) -> str:
    """The name if it is safe as a file name; otherwise a safe one, with a digest to keep names distinct."""
    safe = re.sub(r"[^A-Za-z0-9._]", "_", name)
    return safe if safe == name else f"{safe}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
