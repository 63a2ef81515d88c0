"""Fields of the published JSON: results of the commands, and record.json of a run.

Writers return these types and readers take them; tables in docs/ list the same fields.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, Required, TypedDict

METRIC_NAMES: Mapping[str, str] = {"top1": "top-1", "map": "box AP", "miou": "mIoU"}
"""The metric of each task, by its field in `Scores`: its name in sentences, after a number."""


class SkippedImage(TypedDict):
    """A skipped image or annotated object."""

    path: str
    reason: str
    annotation: NotRequired[int | str]


class CurveRow(TypedDict):
    """An evaluation during training."""

    epoch: float
    step: int
    seconds: float
    train_loss: float | None
    val_loss: float | None
    val_score: float


class PrecisionScores(TypedDict):
    """COCO's average precision, of boxes or of masks."""

    map: float
    map50: float
    map75: float
    small: float | None
    medium: float | None
    large: float | None
    recall: float
    per_class: list[float | None]


class Scores(TypedDict, total=False):
    """Scores of a model; each task has its own."""

    # classification
    top1: float
    top5: float | None
    ece: float
    nll: float
    # detection
    map: float
    map50: float
    map75: float
    small: float | None
    medium: float | None
    large: float | None
    recall: float
    mask: PrecisionScores
    # segmentation
    miou: float
    pixel_accuracy: float
    loss: float
    # several tasks
    per_class: list[float | None]
    confusion: list[list[int]]


class FractionInterval(TypedDict):
    """A fraction with its 95 % interval."""

    mean: float
    low: float
    high: float


# glocal train


class ImageCounts(TypedDict):
    """Numbers of images of a run."""

    train: int
    val: int
    skipped: int


class TaskDescription(TypedDict):
    """The data of a training run in its results.json."""

    classes: list[str]
    images: ImageCounts
    transfer: NotRequired[dict[str, Any]]


class RunResults(Scores, TaskDescription):
    """results.json of `glocal train`, `glocal detect train` and `glocal segment train`."""

    schema: str
    command: str
    plan: dict[str, Any]
    device: str
    processes: int
    environment: dict[str, Any]
    params: int
    macs: int
    metric: str
    best: dict[str, float]
    steps: int
    epochs: float
    seconds: float
    flop: float
    images_per_s: float
    nan_skips: int
    curve: list[CurveRow]
    skipped: list[SkippedImage]


# glocal compare


class BudgetUsed(TypedDict):
    """The budget of a run, and the amount used."""

    asked: str
    epochs: float
    steps: int
    seconds: float
    flop: float
    seconds_to_budget: float


class Mistake(TypedDict):
    """A confident mistake of a classifier."""

    path: str
    picture: str
    true: int
    predicted: int
    confidence: float


class ModelCosts(TypedDict, total=False):
    """Costs of a model; throughput at batch 32 for classifiers, else 8."""

    params: Required[int]
    macs: Required[int]
    latency_ms_b1: Required[float]
    latency_ms_b1_range: list[float]
    images_per_s_b32: float
    images_per_s_b32_range: list[float]
    images_per_s_b8: float
    images_per_s_b8_range: list[float]
    peak_memory_mib: Required[float]


class RunScores(Scores, total=False):
    """Scores of a run in a comparison, and data for its page."""

    mask_map: float | None
    threshold: float
    transfer: dict[str, Any]
    mistakes: list[Mistake]


class RunIdentity(TypedDict):
    """Identity and status of a run."""

    id: str
    model: str
    seed: int
    fraction: float
    status: str
    error: str | None


class RecordedRun(RunIdentity, RunScores, total=False):
    """A run in its record.json; of a failed run only its identity."""

    train_images_per_s: float
    budget: BudgetUsed
    curve: list[CurveRow]
    skipped: list[SkippedImage]
    weights: str


class Record(TypedDict):
    """record.json: a run, and the SHA-256 of each file beside it."""

    run: RecordedRun
    files: dict[str, str]


class RunEntry(RunIdentity, RunScores, ModelCosts):
    """A run in results.json of a comparison; the scores of a failed run are null."""

    train_images_per_s: float | None
    budget: BudgetUsed | None
    curve: list[CurveRow]
    weights: str | None


class SummaryRow(ModelCosts, total=False):
    """Means over the seeds of a model and fraction."""

    model: Required[str]
    fraction: Required[float]
    seeds: Required[int]
    ci_method: Required[str]
    train_images_per_s: Required[float]
    seconds_to_budget: Required[float]
    difference_to_best: Required[float]
    difference_ci: Required[list[float]]
    tied_with_best: Required[bool]
    chance_of_best: float
    within_limits: bool
    # classification
    top1_mean: float
    top1_ci: list[float]
    top5_mean: float | None
    ece_mean: float | None
    # detection
    map_mean: float
    map_ci: list[float]
    map50_mean: float | None
    map75_mean: float | None
    mask_map_mean: float | None
    # segmentation
    miou_mean: float
    miou_ci: list[float]
    pixel_accuracy_mean: float | None


class CompareVerdict(TypedDict):
    """The verdict: which model to take."""

    most_accurate: str | None
    cheapest_tied: str | None
    fastest: str | None
    best_set: NotRequired[list[str]]
    choice: NotRequired[FractionInterval | None]
    sentence: str
    caveats: list[str]


class ClaimsSettings(TypedDict):
    """Settings of the runs of claims, and some of a comparison's."""

    budget: str
    seeds: list[int]
    mode: str
    image_size: int
    device: str
    recipe: dict[str, Any]
    confidence: float
    jobs: int


class CompareSettings(ClaimsSettings):
    """Settings of a comparison."""

    task: NotRequired[str]
    head: NotRequired[dict[str, Any]]
    models: list[str]
    fractions: list[float]
    cost: NotRequired[str]
    search: NotRequired[str]
    image_sizes: NotRequired[dict[str, int]]
    rates: NotRequired[list[float]]


class ClassCounts(TypedDict):
    """Counts by class; null if unknown."""

    train_per_class: list[int] | None
    val_per_class: list[int] | None


class CompareData(ClassCounts):
    """The data of a comparison."""

    name: str
    classes: list[str]
    train: int
    val: int
    test: NotRequired[int]
    split: str
    fingerprint: str
    skipped: list[SkippedImage]
    warnings: list[str]


class DistanceRow(TypedDict):
    """Accuracy of a model in a bin of distances."""

    model: str
    fraction: float
    distance: list[float]
    images: int
    top1_mean: float
    top1_ci: list[float]


class Example(TypedDict):
    """A shown image with the predictions of each model."""

    why: str
    path: str
    scores: dict[str, float | None]
    truth: str
    predictions: dict[str, str]


class ModelAnalysis(TypedDict):
    """Analysis of a trained model."""

    model: str
    run: str
    seconds: float
    parts: dict[str, Any]
    without: dict[str, str]
    failed: dict[str, str]


class Disturbed(TypedDict):
    """The example under a disturbance."""

    name: str
    level: float
    picture: str


class Analysis(TypedDict):
    """Analysis of the models of a comparison."""

    images: int
    inside: int
    seed: int
    example: str
    disturbed: list[Disturbed]
    models: list[ModelAnalysis]


class AskedLimits(TypedDict):
    """The most that the model to take may cost; null is no limit."""

    latency_ms: float | None
    params: float | None
    file_bytes: float | None
    memory_mib: float | None
    runtime: str
    batch_size: int


class LimitCosts(TypedDict):
    """Costs of a model in the runtime of the limits; null if not measured."""

    latency_ms: float | None
    latency_range: list[float] | None
    params: int
    file_bytes: float | None
    memory_mib: float | None
    error: str | None


class LimitedModel(TypedDict):
    """A model before training, and why it does not meet the limits."""

    model: str
    costs: LimitCosts
    reasons: list[str]


class ConfirmedLimits(LimitedModel):
    """The chosen model, measured again from the files of a run."""

    run: str
    margins: list[str]


class LimitsResults(TypedDict):
    """Limits on the cost of the model to take, and how the models stand to them."""

    asked: AskedLimits
    models: list[LimitedModel]
    confirmed: ConfirmedLimits | None


class FinalTestRow(TypedDict):
    """A chosen model on the test images; means over its seeds."""

    model: str
    seeds: int
    top1_mean: float
    top1_ci: list[float]
    nll_mean: float | None


class FinalTest(TypedDict):
    """The chosen models on images that chose nothing."""

    images: int
    models: list[FinalTestRow]


class RaceStanding(TypedDict):
    """A model at a look of a race; differences to the leader."""

    model: str
    score: float
    difference: float
    difference_ci: list[float]
    expected: float
    left: str | None
    to: str | None


class RaceLook(TypedDict):
    """A look at the models in a race, the leader first: ``seeds`` runs each, the fraction ``done`` of their budget."""

    seeds: int
    done: float
    confidence: float
    standings: list[RaceStanding]


class TrialRow(TypedDict):
    """A learning rate tried for a model; without scores if its run failed."""

    model: str
    lr: float
    nll: float | None
    top1: float | None
    error: str | None


class TrialResults(TypedDict):
    """Learning rates tried on held-out training images, and pairs of models in another order at one rate for all."""

    images: int
    budget: str
    rows: list[TrialRow]
    chosen: dict[str, float]
    pairs: int
    reordered: dict[str, int]
    flop: float


class RaceResults(TypedDict):
    """A race: its rungs as (seeds, fraction of the budget), what was seen, and its share of the exhaustive FLOP."""

    rungs: list[list[float]]
    looks: list[RaceLook]
    finished: bool
    still: list[str]
    curves: dict[str, list[list[float]]]
    share: float


class CompareExtras(TypedDict, total=False):
    """Optional entries of a comparison, depending on the task, the data and ``--analyze``."""

    metric: str
    trials: TrialResults
    race: RaceResults
    limits: LimitsResults
    test: FinalTest
    examples: list[Example]
    by_distance: list[DistanceRow]
    analysis: Analysis


class CompareResults(CompareExtras):
    """results.json of `glocal compare`."""

    schema: str
    command: str
    created: str
    glocal: str
    settings: CompareSettings
    data: CompareData
    runs: list[RunEntry]
    summary: list[SummaryRow]
    verdict: CompareVerdict
    environment: dict[str, Any]


# glocal eval


class EvaluatedModel(TypedDict):
    """The model of an evaluation; its size in pixels, (height, width) if they differ."""

    name: str
    digest: str
    runtime: str
    image_size: int | tuple[int, int]
    crop_pct: float


class EvaluationData(TypedDict):
    """The images of an evaluation."""

    name: str
    part: str
    split: str
    warnings: list[str]


ClassScore = TypedDict("ClassScore", {"class": str, "images": int, "top1": float | None})
"""Top-1 of a class; null without images."""


class ConfusedPair(TypedDict):
    """Images of one class that are predicted as another."""

    true: str
    predicted: str
    count: int


class ReliabilityBin(TypedDict):
    """A bin of the reliability diagram; null without images."""

    lower: float
    upper: float
    count: int
    confidence: float | None
    top1: float | None


class EvaluatedMistake(TypedDict):
    """A confident mistake, with the names of the classes."""

    path: str
    true: str
    predicted: str
    confidence: float


class Evaluation(TypedDict):
    """What `glocal.inference.evaluate` returns."""

    model: EvaluatedModel
    data: EvaluationData
    images: int
    top1: float
    top5: float | None
    ece: float
    nll: float
    per_class: list[ClassScore]
    worst_classes: list[str]
    missing_classes: list[str]
    confusions: list[ConfusedPair]
    reliability: list[ReliabilityBin]
    mistakes: list[EvaluatedMistake]
    skipped: list[SkippedImage]


class EvalResults(Evaluation):
    """The file of `glocal eval`."""

    glocal: str


# glocal claims


class PublishedFigure(TypedDict):
    """A published figure, for orientation."""

    text: str
    second_hand: bool


class ClaimMeasure(TypedDict):
    """The metric of a claim; values are multiplied by ``factor`` to be shown."""

    key: str
    name: str
    unit: str
    factor: float
    units: str


class ClaimTexts(TypedDict):
    """The texts of a claim, tested or not: `glocal claims list --json`."""

    id: str
    sentence: str
    background: str
    differ: str
    note: str
    source: str
    url: str
    published: list[PublishedFigure]
    measure: ClaimMeasure


class ClaimComparison(TypedDict):
    """Effect and verdict of a comparison of two arms, or of an arm with 0."""

    first: str
    second: str | None
    expected: str
    margin: float
    of: str
    expected_range: list[float | None]
    effect: float
    interval: list[float]
    method: str
    verdict: str
    question: str
    finding: str


class ScorePoint(TypedDict):
    """A point of a curve of an arm."""

    step: int
    score: float


class ClaimArm(TypedDict):
    """Values and costs of an arm; null without models."""

    name: str
    models: list[str]
    fraction: float
    mean: float
    interval: list[float]
    by_seed: list[float]
    macs: float | None
    params: float | None
    seconds: float | None
    steps: int | None
    runs: list[str]
    curves: list[list[ScorePoint]]


class ClaimCost(TypedDict):
    """The runs that a claim needs."""

    runs: int
    seconds: float


class DecidedClaim(ClaimTexts):
    """A claim with its verdict, null if it could not be tested."""

    verdict: str | None
    exact: bool
    finding: str
    comparisons: list[ClaimComparison]
    arms: list[ClaimArm]
    details: dict[str, Any]
    seeds: list[int]
    cost: ClaimCost
    failures: list[str]


class ClaimEntry(DecidedClaim):
    """A claim in claims.json."""

    created: str
    command: str


class ClaimsData(TypedDict):
    """The data of claims; the number of classes."""

    name: str
    classes: int
    train: int
    val: int
    fingerprint: str


class ClaimsResults(TypedDict):
    """claims.json of `glocal claims run`."""

    schema: str
    created: str
    glocal: str
    command: str
    settings: ClaimsSettings
    data: ClaimsData
    environment: dict[str, Any]
    seconds_of_runs: dict[str, float]
    claims: list[ClaimEntry]


# glocal recommend


class RecommendSettings(TypedDict):
    """Settings of a recommendation; ``needed`` is the threshold of a need."""

    budget: str
    seeds: list[int]
    image_size: int
    device: str
    reference: str
    recipe: str
    needed: float
    confidence: float


class RecommendData(TypedDict):
    """The data of a recommendation; the numbers of classes, of images and of skipped ones."""

    name: str
    classes: int
    train: int
    val: int
    learned_from: int
    tested_on: int
    split: str
    fingerprint: str
    skipped: int
    warnings: list[str]


class NeedCondition(TypedDict):
    """Accuracy of the reference under a condition."""

    kind: str
    level: float
    name: str
    accuracy: FractionInterval
    kept: FractionInterval | None


ImageNeed = TypedDict(
    "ImageNeed",
    {
        "chance": float,
        "local": FractionInterval | None,
        "global": FractionInterval | None,
        "conditions": list[NeedCondition],
    },
)
"""Needs of the images; null if the reference learned nothing."""


class NeedFinding(TypedDict):
    """The conclusion from the needs."""

    kind: str
    sentence: str


class CandidateCosts(TypedDict):
    """Costs of a backbone."""

    params: int
    macs: int
    latency_ms_b1: float
    images_per_s_b32: float
    peak_memory_mib: float


class Candidate(CandidateCosts):
    """A backbone to compare first, and why."""

    model: str
    kind: str
    reason: str
    source: str


class RecommendResults(TypedDict):
    """results.json of `glocal recommend`."""

    schema: str
    command: str
    created: str
    glocal: str
    settings: RecommendSettings
    data: RecommendData
    need: ImageNeed
    finding: NeedFinding
    recommended: list[Candidate]
    next: str
    caveats: list[str]
    environment: dict[str, Any]


# glocal bench


class BenchOptions(TypedDict):
    """Options of a benchmark."""

    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    image_sizes: tuple[int, ...]
    runtimes: tuple[str, ...]
    precision: str
    device: str
    threads: int | None
    peers: bool
    train: bool
    memory: bool
    seconds: float
    reference: str | None


class MachineLimits(TypedDict):
    """The best measurements of the machine."""

    gflops: float
    product: str
    gb_per_s: float


class BenchRow(TypedDict):
    """A model in a runtime, at a batch and image size; what was not measured is null."""

    model: str
    source: str
    runtime: str
    mode: str
    batch_size: int
    image_size: int
    precision: str
    params: int
    macs: int
    name: str
    reference: str
    ms: float | None
    ms_low: float | None
    ms_high: float | None
    images_per_s: float | None
    rounds: int
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    error: str | None
    share_of_limit: float | None
    memory_mib: float | None
    difference: float | None
    same_function: bool | None
    best_peer: bool
    note: str | None


class BenchResults(TypedDict):
    """results.json of `glocal bench`."""

    environment: dict[str, Any]
    settings: BenchOptions
    limits: MachineLimits
    rows: list[BenchRow]
    notes: list[str]
