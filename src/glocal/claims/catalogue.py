"""The claims: one entry each, with the statement of its paper and the experiment that tests it.

Arms are micro models that differ in one keyword wherever the models of the paper do.
"""

from collections.abc import Sequence
from typing import Any

from glocal.claims.claim import Arm, Claim, Comparison, Published, arm
from glocal.errors import GlocalError, nearest
from glocal.models.micro import MICRO_MODELS

MARGIN = 0.02
"""Accuracies within two points count as equal: about what 2,000 validation images can resolve."""
SAME_NETWORK = 0.005
"""The margin of two readouts of one trained network: their noise is shared."""

CONFORMER = ("Peng et al. 2021, Conformer", "https://arxiv.org/abs/2105.03889")
CVT = ("Wu et al. 2021, CvT", "https://arxiv.org/abs/2103.15808")
T2T = ("Yuan et al. 2021, T2T-ViT", "https://arxiv.org/abs/2101.11986")
BOTNET = ("Srinivas et al. 2021, BoTNet", "https://arxiv.org/abs/2101.11605")
CAT = ("Lin et al. 2021, CAT", "https://arxiv.org/abs/2106.05786")

FRACTIONS = (1.0, 0.3, 0.1)
HYBRIDS = ("t2t_vit_micro", "cvt_micro", "conformer_micro", "cat_micro", "botnet_micro")
_BOTNET: dict[str, Any] = {"widths": (8, 16, 32, 64), "depths": (1, 1, 2, 3)}
"""Attention on maps of 16x16 and 8x8 pixels: those of `botnet_micro`, half as large, are too small to compare on."""


def _on(fraction: float) -> str:
    return "on all images" if fraction == 1 else f"on {100 * fraction:g} %"


SMALL_DATA = Claim(
    id="small-data",
    sentence="On small training sets a plain Transformer (ViT) trails a CNN of its size; hybrids do not.",
    background="A convolution is local by design; attention has to learn from the images that neighbours matter. ViT "
    "was published with 300 million pretraining images. Hybrids combine convolution and attention.",
    differ="The model family, at about the same MACs, and the fraction of the training set. All arms take the same "
    "number of training steps, so with fewer images each is repeated more often. The hybrids count by their mean.",
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
    sentence="A CNN branch and a Transformer branch that exchange features beat either branch alone.",
    background="Conformer runs a convolution branch and a transformer branch in parallel; in every block they exchange "
    "features (the coupling). Both branches predict, and their logits are averaged.",
    differ="Whether the branches exchange features, and which branches the model has.",
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
    note="A single branch also costs less: the whole model is compared with a part of it.",
)

TWO_HEADS = Claim(
    id="two-heads",
    sentence="The summed logits of both Conformer heads are at least as accurate as either head.",
    background="Conformer has a classifier on each of its two branches. Their logits are added.",
    differ="Which logits of one trained network are used.",
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
    sentence="CvT needs no position embedding; a plain Transformer (ViT) does.",
    background="Attention treats an image as a set of patches: without a position embedding their order is lost. CvT's "
    "convolutions see neighbourhoods, from which it may infer positions.",
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
    sentence="Convolutional projections to queries, keys and values beat linear projections.",
    background="Attention compares a query with keys and averages values. A plain Transformer projects each patch "
    "separately; CvT first applies a 3x3 convolution, so neighbouring patches contribute.",
    differ="The projection to queries, keys and values.",
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
    note="Average pooling, of keys and values only, is shown for comparison. The linear projection keeps all keys; the "
    "other two keep one in four.",
)

CVT_KV_STRIDE = Claim(
    id="cvt-kv-stride",
    sentence="Keys and values at half the resolution are cheaper and cost little accuracy.",
    background="Every query is compared with every key, so a quarter of the keys is a quarter of that work.",
    differ="The stride of the convolutional projection to keys and values.",
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
    sentence="A class token is no better than average pooling.",
    background="A class token is an extra token without a position: it gathers the information for the prediction. "
    "Average pooling of all tokens is simpler. CvT has the class token in its last stage only.",
    differ="The input of the classifier: the class token, or the average over all positions.",
    measure="top1",
    arms=(
        arm("average", "cvt_micro", class_token=False, global_pool="avg"),
        arm("class token", "cvt_micro"),
    ),
    comparisons=(Comparison("average", "class token", "not less", MARGIN),),
    source=f"{CVT[0]}, §3 (definition of the class token); no published ablation",
    url=CVT[1],
)

T2T_TOKENS = Claim(
    id="t2t-tokens",
    sentence="Overlapping tokens-to-token steps beat a single patch embedding; in these steps a Transformer is at "
    "least as good as a Performer, and a Performer better than convolutions.",
    background="ViT splits an image into patches once and loses edges across their borders. T2T-ViT takes overlapping "
    "patches, lets them attend to each other, and repeats. A Performer is attention with linear cost.",
    differ="The tokens-to-token module; the rest of the model is the same.",
    measure="top1",
    arms=(
        arm("transformer", "t2t_vit_micro", tokens="transformer"),
        arm("performer", "t2t_vit_micro"),
        arm("convolution", "t2t_vit_micro", tokens="convolution"),
        arm("patch embedding", "t2t_vit_micro", tokens="patch"),
    ),
    comparisons=(
        Comparison("transformer", "patch embedding", "more"),
        Comparison("performer", "patch embedding", "more"),
        Comparison("transformer", "performer", "not less", MARGIN),
        Comparison("performer", "convolution", "more"),
    ),
    source=f"{T2T[0]}, §4.3, Tab. 6",
    url=T2T[1],
    published=(Published("T2T-ViT_t-14 (transformer) 81.7 %, T2T-ViT-14 (performer) 81.5 % on ImageNet-1k"),),
)

BOT_POSITION = Claim(
    id="bot-position",
    sentence="For attention in a CNN, relative position embeddings are better than absolute ones, and absolute ones "
    "better than none.",
    background="A relative position embedding encodes the offset between two positions, an absolute one each position "
    "itself.",
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
    sentence="In the last stage of a CNN, attention instead of 3x3 convolutions is more accurate at the same cost.",
    background="BoTNet is a ResNet with global attention in its last stage (c5), where the map is small and attention "
    "cheap.",
    differ="Which stages have attention instead of 3x3 convolutions.",
    measure="top1",
    arms=(
        arm("no attention", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 2), attention_stages=()),
        arm("last stage", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 2)),
        arm("last two stages", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 2), attention_stages=(3, 4)),
        arm("last stage, stride 1", "botnet_micro", **_BOTNET, strides=(1, 1, 2, 1)),
    ),
    comparisons=(
        Comparison("last stage", "no attention", "more"),
        Comparison("last stage", "no attention", "equal", 0.1, of="macs"),
    ),
    source=f"{BOTNET[0]}, §3.1, Tab. 1; stride 1 §4.8",
    url=BOTNET[1],
    note="Attention in the last two stages, and at stride 1 (a map of twice the side), are shown for comparison.",
)

CAT_EMBEDDING = Claim(
    id="cat-embedding",
    sentence="A patch embedding by slicing is as good as one by a strided convolution.",
    background="Both turn patches into features. A strided convolution does it in one step; slicing moves neighbouring "
    "pixels into channels and applies a linear layer.",
    differ="The patch embedding: a strided convolution or slicing.",
    measure="top1",
    arms=(arm("convolution", "cat_micro"), arm("slicing", "cat_micro", embed="slice")),
    comparisons=(Comparison("slicing", "convolution", "equal", MARGIN),),
    source=f"{CAT[0]}, §3.1",
    url=CAT[1],
    published=(Published("equal"),),
)

CAT_SHIFT = Claim(
    id="cat-shift",
    sentence="Shifted windows are no better than attention between windows.",
    background="Attention inside small windows is cheap but never crosses their borders. Swin shifts the windows by "
    "half their side in every other layer; CAT lets the windows attend to each other, one channel at a time.",
    differ="Every third attention: between windows, or inside shifted windows.",
    measure="top1",
    arms=(arm("between windows", "cat_micro"), arm("shifted windows", "cat_micro", cross="shifted")),
    comparisons=(Comparison("between windows", "shifted windows", "not less", MARGIN),),
    source=f"{CAT[0]}, §4 (ablations)",
    url=CAT[1],
)

CAT_POSITION = Claim(
    id="cat-position",
    sentence="CAT gains from an absolute position embedding, but not from multiple heads in attention between windows.",
    background="Attention between windows encodes no positions. Multiple heads could attend in several ways at once.",
    differ="Whether there is a learned position embedding, and the number of heads in attention between windows.",
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
    sentence="Attention inside windows and between windows costs a fraction of global attention.",
    background="Global attention compares every pixel of a map with every other, so its cost grows with the square of "
    "their number. CAT attends inside windows of 7x7 (IPSA) and then between whole windows (CPSA).",
    differ="The kind of attention, on maps of 28 to 112 pixels a side and 96 channels. MACs are counted on our layers "
    "and computed by the paper's formulas.",
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
    note="A fraction means less than half, at every size. No training and no images are needed.",
)

LOW_PASS = Claim(
    id="low-pass",
    sentence="Self-attention blurs features; convolution sharpens them.",
    background="Features, like images, hold coarse patterns and fine detail. A block changes the amplitude of the "
    "highest frequency between its input and its output: by −0.7 nats if it halves it.",
    differ="The kind of operation, in all seven families, trained; for comparison, with their initial random weights.",
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
    note="Mean over the attention or convolution blocks of a family, then over the families that have such blocks. "
    "The interval does not include the variation over other families: single blocks go either way.",
)

PADDING_POSITION = Claim(
    id="padding-position",
    sentence="Zero padding encodes position in the features of a CNN.",
    background="A convolution is translation-equivariant, so its features should not encode position. But zero padding "
    "surrounds the map with values unlike those inside. Circular padding leaves no border.",
    differ="The padding of the convolutions of one network while its features are extracted. A linear probe then "
    "predicts row and column from the features of one position: 1 is perfect, 0 is chance level. Images are first "
    "rolled by random offsets, so that their content does not reveal the position.",
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
    note="The network was trained with zero padding; with random weights it favours no padding.",
)

SMALL_PATCHES = Claim(
    id="small-patches",
    sentence="On small images a Transformer gains from smaller patches, and from a pyramid of resolutions.",
    background="Patches of 16 pixels, made for large images, give a small image hardly any tokens. A pyramid begins "
    "with small patches and few channels and merges patches stage by stage, as a CNN does.",
    differ="The patch size; width and depth are set so that all arms have about the same MACs. The pyramid is CvT with "
    "non-overlapping patches and without convolutions in attention.",
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
    """``all``, or claims by comma-separated ids; each once, in the order of the catalogue.

    Raises:
        GlocalError: for an unknown id, or if none is given.
    """
    known = {claim.id: claim for claim in CLAIMS}
    asked = list(known) if ids.strip() == "all" else [name.strip() for name in ids.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise GlocalError(f"claim: expected all, or one of {', '.join(known)}; got {name!r}{nearest(name, known)}")
    if not asked:
        raise GlocalError(f"claim: expected all, or one of {', '.join(known)}; got nothing")
    return tuple(claim for claim in CLAIMS if claim.id in asked)


def words(claims: Sequence[Claim]) -> dict[float, tuple[str, ...]]:
    """The models to train by fraction of the training set, the largest first; each model once."""
    by_fraction: dict[float, dict[str, None]] = {}
    for claim in claims:
        for model, fraction in claim.trained():
            by_fraction.setdefault(fraction, {})[model] = None
    return {fraction: tuple(by_fraction[fraction]) for fraction in sorted(by_fraction, reverse=True)}
