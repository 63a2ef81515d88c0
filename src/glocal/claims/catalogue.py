"""The claims: one entry each, with the statement of the paper and the experiment that tests it.

Arms are micro models that differ in one keyword where the models of the paper do.
"""

from collections.abc import Sequence
from typing import Any

from glocal.claims.claim import Arm, Claim, Comparison, Published, arm
from glocal.errors import GlocalError, nearest
from glocal.models.micro import MICRO_MODELS

MARGIN = 0.02
"""Accuracies less than two points apart count as equal: about the resolution of 2,000 test images."""
SAME_NETWORK = 0.005
"""For two readings of one trained network, with common noise."""

CONFORMER = ("Peng et al. 2021, Conformer", "https://arxiv.org/abs/2105.03889")
CVT = ("Wu et al. 2021, CvT", "https://arxiv.org/abs/2103.15808")
T2T = ("Yuan et al. 2021, T2T-ViT", "https://arxiv.org/abs/2101.11986")
BOTNET = ("Srinivas et al. 2021, BoTNet", "https://arxiv.org/abs/2101.11605")
CAT = ("Lin et al. 2021, CAT", "https://arxiv.org/abs/2106.05786")

FRACTIONS = (1.0, 0.3, 0.1)
HYBRIDS = ("t2t_vit_micro", "cvt_micro", "conformer_micro", "cat_micro", "botnet_micro")
_BOTNET: dict[str, Any] = {"widths": (8, 16, 32, 64), "depths": (1, 1, 2, 3)}
"""Attention on maps of 16x16 and 8x8 pixels; those of `botnet_micro` are half as large."""


def _on(fraction: float) -> str:
    return "on all images" if fraction == 1 else f"on {100 * fraction:g} %"


SMALL_DATA = Claim(
    id="small-data",
    sentence="Without much data a plain Transformer (ViT) trails a CNN of its size; networks that mix both do not.",
    background="A convolution looks at neighbouring pixels from the start; attention has to learn from the images that "
    "neighbours matter. ViT was published with 300 million images behind it. Hybrids have some of both.",
    differ="The family of the network, at about the same multiply-accumulates, and the share of the training images. "
    "Every arm takes the same number of training steps, so with fewer images it sees each more often. The hybrids "
    "count by their mean.",
    measure="top1",
    arms=tuple(
        side
        for fraction in FRACTIONS
        for side in (
            arm(f"CNN {_on(fraction)}", "resnet_micro", fraction=fraction),
            arm(f"ViT {_on(fraction)}", "vit_micro", fraction=fraction),
            Arm(f"mean of hybrids {_on(fraction)}", HYBRIDS, fraction),
        )
    ),
    comparisons=tuple(
        part
        for fraction in FRACTIONS
        for part in (
            Comparison(f"CNN {_on(fraction)}", f"ViT {_on(fraction)}", "more"),
            Comparison(f"mean of hybrids {_on(fraction)}", f"CNN {_on(fraction)}", "not less", MARGIN),
        )
    ),
    source="Yuan et al. 2021, T2T-ViT, §1; Wu et al. 2021, CvT, §1",
    url=T2T[1],
    published=(
        Published("T2T-ViT-14, a hybrid: 81.5 % top-1 on ImageNet-1k, trained on it alone"),
        Published("ViT-S, of its size: 78.1 %", second_hand=True),
    ),
)

COUPLING = Claim(
    id="coupling",
    sentence="A CNN and a Transformer side by side that exchange features beat either of them alone.",
    background="Conformer runs a convolution branch and a transformer branch in parallel; in every block each hands "
    "its features to the other (the coupling). Both answer, and the mean of the answers counts.",
    differ="Whether the branches exchange features, and which of them are there.",
    measure="top1",
    arms=(
        arm("coupled", "conformer_micro"),
        arm("not coupled", "conformer_micro", coupling=False),
        arm("convolution branch alone", "conformer_micro", branches="conv"),
        arm("transformer branch alone", "conformer_micro", branches="trans"),
    ),
    comparisons=(
        Comparison("coupled", "not coupled", "more"),
        Comparison("coupled", "convolution branch alone", "more"),
        Comparison("coupled", "transformer branch alone", "more"),
    ),
    source=f"{CONFORMER[0]}, abstract and §3.2",
    url=CONFORMER[1],
    published=(Published("Conformer-B is 2.3 points above DeiT-B, a plain Transformer, on ImageNet-1k"),),
    note="A branch alone also costs less: what is compared is the whole with one of its parts.",
)

TWO_HEADS = Claim(
    id="two-heads",
    sentence="Adding the answers of both heads of a Conformer is at least as good as either head.",
    background="Conformer has a classifier on each of its two branches. Their logits, the scores of the classes, are "
    "added.",
    differ="Which logits of one trained network are read.",
    measure="heads",
    arms=(
        arm("sum of both heads", "conformer_micro", reading="both"),
        arm("convolution head", "conformer_micro", reading="conv"),
        arm("transformer head", "conformer_micro", reading="trans"),
    ),
    comparisons=(
        Comparison("sum of both heads", "convolution head", "not less", SAME_NETWORK),
        Comparison("sum of both heads", "transformer head", "not less", SAME_NETWORK),
    ),
    source=f"{CONFORMER[0]}, §3.3",
    url=CONFORMER[1],
)

CVT_POSITION_FREE = Claim(
    id="cvt-position-free",
    sentence="CvT does not need to be told where in the image a patch is; a plain Transformer (ViT) does.",
    background="Attention treats an image as a set of patches: without a position embedding their order is lost. CvT's "
    "convolutions see neighbourhoods, and so may find out by themselves.",
    differ="Whether a learned position embedding is added.",
    measure="top1",
    arms=(
        arm("CvT without position", "cvt_micro"),
        arm("CvT with position", "cvt_micro", position=True),
        arm("ViT with position", "vit_micro"),
        arm("ViT without position", "vit_micro", position="none"),
    ),
    comparisons=(
        Comparison("CvT without position", "CvT with position", "not less", MARGIN),
        Comparison("ViT with position", "ViT without position", "more"),
    ),
    source=f"{CVT[0]}, Tab. 5",
    url=CVT[1],
    published=(
        Published("CvT-13: 81.5 % with and 81.6 % without position", second_hand=True),
        Published("DeiT-S, a plain Transformer: 79.9 % with and 78.0 % without", second_hand=True),
    ),
)

CVT_CONV_PROJECTION = Claim(
    id="cvt-conv-projection",
    sentence="Making queries, keys and values by a small convolution beats making them by a linear layer.",
    background="Attention compares a query with keys and gathers values. A Transformer makes all three of a patch "
    "alone; CvT lets a 3x3 convolution look at its neighbours first.",
    differ="What features pass before they become query, key and value.",
    measure="top1",
    arms=(
        arm("convolution", "cvt_micro"),
        arm("linear", "cvt_micro", projection="linear"),
        arm("average pooling", "cvt_micro", projection="pool"),
    ),
    comparisons=(Comparison("convolution", "linear", "more"),),
    source=f"{CVT[0]}, §4.4, Tab. 7",
    url=CVT[1],
    published=(Published("about 0.9 points on ImageNet-1k"),),
    note="Average pooling, of keys and values alone, is shown beside. The linear projection keeps all keys, where the "
    "other two take one in four.",
)

CVT_KV_STRIDE = Claim(
    id="cvt-kv-stride",
    sentence="Taking keys and values at half the resolution is cheaper and costs little accuracy.",
    background="Every query is compared with every key, so a quarter of the keys is a quarter of that work.",
    differ="The stride of the convolution that makes keys and values.",
    measure="top1",
    arms=(arm("stride 2", "cvt_micro"), arm("stride 1", "cvt_micro", kv_stride=1)),
    comparisons=(
        Comparison("stride 2", "stride 1", "not less", MARGIN),
        Comparison("stride 1", "stride 2", "more", of="macs"),
    ),
    source=f"{CVT[0]}, §3.2 (efficiency considerations), §4.4",
    url=CVT[1],
    published=(Published("CvT-13: 82.3 % to 81.6 % at about 30 % fewer multiply-accumulates", second_hand=True),),
)

CVT_CLS = Claim(
    id="cvt-cls",
    sentence="A class token is no better than averaging the features.",
    background="A class token is a patch more that belongs to no place: it gathers what the answer needs. Averaging "
    "all patches is simpler. CvT has the token in its last stage alone.",
    differ="What the classifier is given: the class token, or the mean over all places.",
    measure="top1",
    arms=(
        arm("average", "cvt_micro", class_token=False, global_pool="avg"),
        arm("class token", "cvt_micro"),
    ),
    comparisons=(Comparison("average", "class token", "not less", MARGIN),),
    source=f"{CVT[0]}, §3 (where the token is); no ablation of it is published",
    url=CVT[1],
)

T2T_TOKENS = Claim(
    id="t2t-tokens",
    sentence="Making tokens in overlapping steps beats cutting the image into patches once; a Transformer makes them "
    "at least as well as a Performer, and a Performer better than convolutions.",
    background="ViT cuts an image into squares and is then blind to edges that cross them. T2T-ViT takes overlapping "
    "squares, lets them attend to each other, and repeats. A Performer is attention of linear cost.",
    differ="How the image becomes tokens; the blocks that follow are the same.",
    measure="top1",
    arms=(
        arm("transformer", "t2t_vit_micro", tokens="transformer"),
        arm("performer", "t2t_vit_micro"),
        arm("convolution", "t2t_vit_micro", tokens="convolution"),
        arm("one split into patches", "t2t_vit_micro", tokens="patch"),
    ),
    comparisons=(
        Comparison("transformer", "one split into patches", "more"),
        Comparison("performer", "one split into patches", "more"),
        Comparison("transformer", "performer", "not less", MARGIN),
        Comparison("performer", "convolution", "more"),
    ),
    source=f"{T2T[0]}, §4.3, Tab. 6",
    url=T2T[1],
    published=(Published("T2T-ViT_t-14 (transformer) 81.7 %, T2T-ViT-14 (performer) 81.5 % on ImageNet-1k"),),
)

BOT_POSITION = Claim(
    id="bot-position",
    sentence="Attention in a CNN gains from knowing how far apart two places are, more than from knowing where each "
    "is, and that more than from neither.",
    background="A position embedding tells attention about places: a relative one the offset between two of them, an "
    "absolute one the place of each.",
    differ="The position embedding of the attention in the last stage.",
    measure="top1",
    arms=(
        arm("relative", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 1)),
        arm("absolute", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 1), position="absolute"),
        arm("none", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 1), position="none"),
    ),
    comparisons=(Comparison("relative", "absolute", "more"), Comparison("absolute", "none", "more")),
    source=f"{BOTNET[0]}, Tab. 4",
    url=BOTNET[1],
)

BOT_WHERE = Claim(
    id="bot-where",
    sentence="In the last stage of a CNN attention pays in the place of 3x3 convolutions: more accuracy, no more cost.",
    background="BoTNet is a ResNet whose last stage (c5) attends to the whole map, where the map is small and "
    "attention cheap.",
    differ="In which stages attention stands for the convolution.",
    measure="top1",
    arms=(
        arm("nowhere", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 2), attention_stages=()),
        arm("last stage", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 2)),
        arm("last two stages", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 2), attention_stages=(3, 4)),
        arm("last stage, stride 1", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 1)),
    ),
    comparisons=(
        Comparison("last stage", "nowhere", "more"),
        Comparison("last stage", "nowhere", "equal", 0.1, of="macs"),
    ),
    source=f"{BOTNET[0]}, §3.1, Tab. 1; stride 1 §4.8",
    url=BOTNET[1],
    note="Attention in the last two stages, and on a map of twice the side (stride 1), are shown beside.",
)

CAT_EMBEDDING = Claim(
    id="cat-embedding",
    sentence="Cutting the image into patches by slicing is as good as by a strided convolution.",
    background="Both turn squares of pixels into the first features. A convolution does it in one step; slicing moves "
    "neighbouring pixels into channels and mixes them by a linear layer.",
    differ="How squares of pixels become features: by a convolution or by slices.",
    measure="top1",
    arms=(arm("convolution", "cat_micro"), arm("slicing", "cat_micro", embed="slice")),
    comparisons=(Comparison("slicing", "convolution", "equal", MARGIN),),
    source=f"{CAT[0]}, §3.1",
    url=CAT[1],
    published=(Published("equal"),),
)

CAT_SHIFT = Claim(
    id="cat-shift",
    sentence="Shifted windows do no better than attention between windows.",
    background="Attention inside small windows is cheap but never looks outside. Swin shifts the windows by half their "
    "side in every other layer; CAT lets the windows attend to each other, one channel at a time.",
    differ="What every third attention does: look between windows, or inside shifted ones.",
    measure="top1",
    arms=(arm("between windows", "cat_micro"), arm("shifted windows", "cat_micro", cross="shifted")),
    comparisons=(Comparison("between windows", "shifted windows", "not less", MARGIN),),
    source=f"{CAT[0]}, §4 (ablations)",
    url=CAT[1],
)

CAT_POSITION = Claim(
    id="cat-position",
    sentence="CAT gains from an absolute position embedding, and not from several heads between windows.",
    background="Attention between windows has no position of its own. Several heads would let it look at several "
    "things at a time.",
    differ="Whether each place has a learned embedding, and how many heads attend between windows.",
    measure="top1",
    arms=(
        arm("as published: position, 1 head", "cat_micro"),
        arm("no position", "cat_micro", position=False),
        arm("4 heads", "cat_micro", cross_heads=4),
    ),
    comparisons=(
        Comparison("as published: position, 1 head", "no position", "more"),
        Comparison("as published: position, 1 head", "4 heads", "not less", MARGIN),
    ),
    source=f"{CAT[0]}, Tab. 8 (heads), Tab. 9 (position)",
    url=CAT[1],
)

COST = Claim(
    id="cost",
    sentence="Attention inside windows and between windows costs a fraction of attention over the whole map.",
    background="Global attention compares every pixel of a map with every other, so its cost grows with the square of "
    "their number. CAT compares inside windows of 7x7 (IPSA) and then whole windows with each other (CPSA).",
    differ="The kind of attention, on maps of 28 to 112 pixels a side and 96 channels. Each is counted on our layer "
    "and computed by the paper's formula.",
    measure="costs",
    arms=(
        Arm("global", reading="counted msa"),
        Arm("inside windows", reading="counted ipsa"),
        Arm("between windows", reading="counted cpsa"),
        Arm("global, formula", reading="formula msa"),
        Arm("inside windows, formula", reading="formula ipsa"),
        Arm("between windows, formula", reading="formula cpsa"),
    ),
    comparisons=(
        Comparison("global", "inside windows", "more", 0.5),
        Comparison("global", "between windows", "more", 0.5),
        Comparison("global", "global, formula", "equal", 0.01),
        Comparison("inside windows", "inside windows, formula", "equal", 0.01),
        Comparison("between windows", "between windows, formula", "equal", 0.01),
    ),
    source=f"{CAT[0]}, §3.2",
    url=CAT[1],
    published=(Published("2.0, 0.15 and 0.10 billion multiply-accumulates on a map of 56x56 pixels and 96 channels"),),
    note="A fraction is taken to be less than half, at every size. Nothing is trained, and no image is looked at.",
)

LOW_PASS = Claim(
    id="low-pass",
    sentence="Self-attention blurs the features that pass through it; convolution sharpens them.",
    background="Features, like images, hold coarse patterns and fine detail. A block changes the "
    "amplitude of the highest frequency, from what comes in to what goes out: by −0.7 nats if it halves it.",
    differ="The kind of operation, in all seven families, trained, and for comparison with their random weights from "
    "before the training.",
    measure="frequencies",
    arms=(
        Arm("attention", MICRO_MODELS, reading="trained attention"),
        Arm("convolution", MICRO_MODELS, reading="trained convolution"),
        Arm("attention, untrained", MICRO_MODELS, reading="untrained attention"),
        Arm("convolution, untrained", MICRO_MODELS, reading="untrained convolution"),
    ),
    comparisons=(Comparison("attention", None, "less"), Comparison("convolution", None, "more")),
    source="Park and Kim 2022, How Do Vision Transformers Work?, §2, Fig. 2a, 8 and 9",
    url="https://arxiv.org/abs/2202.06709",
    published=(Published("below zero for attention, above zero for convolution"),),
    note="Mean over the blocks of a family that attend or convolve, then over the families that have such blocks. "
    "What other families would change is not in the interval: single blocks go either way.",
)

PADDING_POSITION = Claim(
    id="padding-position",
    sentence="The zeros around the borders tell a CNN where in the image it is.",
    background="A convolution is the same everywhere, so it should not know its place. But the border of the map is "
    "filled with zeros, which look like nothing inside. With circular padding there is no border to see.",
    differ="How the convolutions of one network are padded while its features are read. A linear probe then predicts "
    "row and column from the features of a place: 1 is perfect, 0 is a guess. Images are rolled around by chance "
    "first, so that their content tells nothing.",
    measure="places",
    arms=(
        arm("zero padding", "resnet_micro", reading="trained zeros"),
        arm("reflection", "resnet_micro", reading="trained reflect"),
        arm("circular padding", "resnet_micro", reading="trained circular"),
        arm("zero padding, untrained", "resnet_micro", reading="untrained zeros"),
        arm("circular padding, untrained", "resnet_micro", reading="untrained circular"),
    ),
    comparisons=(Comparison("zero padding", "circular padding", "more", 0.1),),
    source="Islam et al. 2020, How Much Position Information Do Convolutional Neural Networks Encode?",
    url="https://arxiv.org/abs/2001.08248",
    published=(Published("zero padding far above none"),),
    note="The network was trained with zeros; with random weights it favours no padding.",
)

SMALL_PATCHES = Claim(
    id="small-patches",
    sentence="On small images a Transformer is helped by smaller patches, and by a pyramid of resolutions.",
    background="Patches of 16 pixels, made for large images, leave a small one with hardly any tokens. A pyramid "
    "begins with small patches and few channels and merges them stage by stage, as a CNN does.",
    differ="The side of a patch; width and depth are set so that all arms cost about the same multiply-accumulates. "
    "The pyramid is CvT without its convolutions in attention and with patches that do not overlap.",
    measure="top1",
    arms=(
        arm("patch size 8", "vit_micro", patch_size=8, dim=96, depth=6),
        arm("patch size 4", "vit_micro"),
        arm("patch size 2", "vit_micro", patch_size=2, dim=24, depth=2),
        arm("pyramid", "cvt_micro", embed="patch", projection="pool", position=True),
    ),
    comparisons=(
        Comparison("patch size 4", "patch size 8", "more"),
        Comparison("patch size 2", "patch size 4", "more"),
        Comparison("pyramid", "patch size 4", "more"),
    ),
    source="Wang et al. 2021, Pyramid Vision Transformer, §1 and §3.1",
    url="https://arxiv.org/abs/2102.12122",
)

CLAIMS: tuple[Claim, ...] = (
    SMALL_DATA, COUPLING, TWO_HEADS, CVT_POSITION_FREE, CVT_CONV_PROJECTION, CVT_KV_STRIDE, CVT_CLS, T2T_TOKENS,
    BOT_POSITION, BOT_WHERE, CAT_EMBEDDING, CAT_SHIFT, CAT_POSITION, COST, LOW_PASS, PADDING_POSITION, SMALL_PATCHES,
)  # fmt: skip


def choose(ids: str) -> tuple[Claim, ...]:
    """``all``, or comma-separated ids -> claims, each once, in the order of the catalogue.

    Raises:
        GlocalError: for an unknown id, or none.
    """
    known = {claim.id: claim for claim in CLAIMS}
    asked = list(known) if ids.strip() == "all" else [name.strip() for name in ids.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise GlocalError(f"claim: expected all, or one of {', '.join(known)}; got {name!r}{nearest(name, known)}")
    if not asked:
        raise GlocalError(f"claim: expected all, or one of {', '.join(known)}; got nothing")
    return tuple(claim for claim in CLAIMS if claim.id in asked)


def models_by_fraction(claims: Sequence[Claim]) -> dict[float, tuple[str, ...]]:
    """Models to train, by fraction of the training images, the largest first."""
    by_fraction: dict[float, dict[str, None]] = {}
    for claim in claims:
        for model, fraction in claim.trained():
            by_fraction.setdefault(fraction, {})[model] = None
    return {fraction: tuple(by_fraction[fraction]) for fraction in sorted(by_fraction, reverse=True)}
