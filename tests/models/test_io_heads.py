"""Saved detectors and segmenters: what is written loads again bit for bit, and nothing else loads."""

import json
import struct

import pytest
import torch

import glocal
from glocal.errors import CheckpointError, GlocalError
from glocal.heads.settings import OPTIONS
from glocal.models.io import ModelConfig, load_model, save_model
from glocal.tasks.heads import backbone_of, load_backbone_weights, model_config, read_options
from glocal.training import HeadConfig, load_recipe

CLASSES = ("ant", "bee", "=cat", "d\udcff\x1b[31m")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config_of(head="fcos", backbone="resnet_micro", **kwargs):
    task = "detection" if head in ("fcos", "mask_rcnn", "detr", "rt_detr", "faster_rcnn") else "segmentation"
    preset = {"preset": "small"} if task == "detection" else {}
    return ModelConfig(task, backbone, CLASSES, 64, MEAN, STD, head=head, **{**preset, **kwargs})


def made(of, seed=0):
    torch.manual_seed(seed)
    model = of.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def rewrite(file, change):
    """Change the configuration of a file, the digest left as it was."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    change(config)
    header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    file.with_name("config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "of",
    [
        config_of("mask_rcnn", category_ids=(4, -1, 9, 2)),
        config_of("fcos", "vit_micro", options={"channels": 64, "score_thresh": 0.2}),
        config_of("faster_rcnn", norm="frozen"),
        config_of("rt_detr", "cvt_micro", options={"num_queries": 12, "decoder_layers": 1}),
        config_of("upernet", options={"dim": 48}),
        config_of("smp_unet", "conformer_micro"),
    ],
    ids=lambda of: of.name,
)
def test_it_comes_back(tmp_path, of):
    model = made(of)
    save_model(model, tmp_path, of)
    saved = load_model(tmp_path)
    assert saved.config == of
    own, back = model.state_dict(), saved.model.state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name], back[name]) for name in own)
    assert saved.identity == saved.digest
    images = [torch.rand(3, 50, 70)]
    with torch.no_grad():
        if of.task == "detection":
            one, other = model(images)[0], saved.model(images)[0]
            assert all(torch.equal(one[name], other[name]) for name in one)
        else:
            assert torch.equal(model(images[0][None]), saved.model(images[0][None]))
    save_model(saved.model, tmp_path / "again", of)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    of = config_of()
    save_model(made(of), folder, of)
    return folder / "model.safetensors"


@pytest.fixture
def copy(file, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((file.parent / name).read_bytes())
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ["detection"]}, "task: expected one of detection, segmentation"),
        ({"task": "poetry"}, "task: expected one of detection, segmentation"),
        ({"head": "yolo"}, "head: expected one of"),
        ({"head": "upernet"}, "head: expected one of"),
        ({"head": ["fcos"]}, "head: expected one of"),
        ({"backbone": "os.system"}, "backbone: expected a name"),
        ({"backbone": "hf-hub:evil/model"}, "backbone: expected a name"),
        ({"backbone": 7}, "backbone: expected a name"),
        ({"backbone": "vit_micro"}, "is not of the fcos on vit_micro it describes"),
        ({"preset": "coco"}, "is not of the fcos"),
        ({"preset": "huge"}, "preset: expected one of"),
        ({"preset": ""}, "preset: expected one of coco, small"),
        ({"preset": {}}, "preset: expected one of"),
        ({"norm": "sync"}, "norm: expected one of batch, frozen"),
        ({"image_size": 1e9}, "image_size: expected 32 to 2048"),
        ({"image_size": True}, "image_size: expected 32 to 2048"),
        ({"classes": ["a", "a", "b", "c"]}, "got 'a' twice"),
        ({"classes": ["a"]}, "is not of the fcos"),
        ({"classes": []}, "classes: expected a list of 1 to"),
        ({"classes": "abcd"}, "classes: expected a list of 1 to"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean: expected 3 numbers"),
        ({"mean": [0.5, True, 0.5]}, "mean: expected 3 numbers"),
        ({"std": [0, 1, 1]}, "std: expected 3 numbers"),
        ({"options": {"channels": 10**9}}, "channels: expected a whole number from 8 to 1024"),
        ({"options": {"weights": "http://evil"}}, "unknown keyword 'weights'"),
        ({"options": {"channels": 8.5}}, "channels: expected a whole number"),
        ({"options": [1]}, "options: expected an object"),
        ({"category_ids": [1, 1, 2, 3]}, "category_ids: expected 4 different"),
        ({"category_ids": [1]}, "category_ids: expected 4 different"),
        ({"_target_": "os.system"}, "unknown setting '_target_'"),
        ({"image_size": 96}, "has changed since it was written"),
    ],
)
def test_nonsense_is_refused(copy, change, message):
    rewrite(copy, lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(copy)
    assert str(caught.value).startswith(str(copy))


def test_a_missing_setting_is_named(copy):
    rewrite(copy, lambda config: config.pop("classes"))
    with pytest.raises(CheckpointError, match="its configuration lacks classes"):
        load_model(copy)


@pytest.mark.parametrize("seed", range(12))
def test_damage_is_found(copy, seed):
    content = bytearray(copy.read_bytes())
    place = int(torch.randint(len(content), (), generator=torch.Generator().manual_seed(seed)))
    content[place] ^= 1 << seed % 8
    copy.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_model(copy)


def test_cut_off_and_too_long(copy):
    content = copy.read_bytes()
    for changed in (content[:-1], content + b"\0", content[:100], b""):
        copy.write_bytes(changed)
        with pytest.raises(CheckpointError):
            load_model(copy)


def test_each_command_takes_its_own(copy, tmp_path):
    with pytest.raises(CheckpointError, match="expected a segmenter, got a detector; `glocal detect` takes it"):
        load_model(copy, "segmentation")
    with pytest.raises(CheckpointError, match="expected a classifier, got a detector"):
        load_model(copy, "classification")
    classifier = glocal.create_model("resnet_micro", num_classes=2)
    save_model(
        classifier, tmp_path / "classifier", ModelConfig.of_classifier(classifier, classes=("a", "b"), image_size=32)
    )
    with pytest.raises(CheckpointError, match="expected a detector, got a classifier; `glocal eval`"):
        load_model(tmp_path / "classifier", "detection")


def test_what_would_not_load_is_not_saved(tmp_path):
    with pytest.raises(GlocalError, match="could not be loaded again if saved"):
        save_model(made(config_of()), tmp_path, config_of("faster_rcnn"))
    broken = made(config_of())
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(GlocalError, match="expected finite weights"):
        save_model(broken, tmp_path, config_of())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resnet_micro", "vit_micro", "cvt_micro", "conformer_micro", "cat_micro", "resnet18"])
def test_a_backbone_is_loaded_from_a_classifier(tmp_path, name):
    torch.manual_seed(1)
    size = {"img_size": 32} if name.endswith("micro") else {}
    classifier = glocal.create_model(name, num_classes=3, **size).eval()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(classifier, tmp_path, ModelConfig.of_classifier(classifier, classes=("a", "b", "c"), image_size=32))
    model = config_of("semantic_fpn", name, options={"dim": 16, "head_dim": 16}).build().eval()
    backbone = backbone_of(model)
    images = torch.rand(1, 3, 32, 32)
    loaded = load_backbone_weights(backbone, tmp_path / "model.safetensors", name)
    assert loaded.source == name
    left = set(loaded.left_out)
    assert left, "the head at least"
    assert all(key.startswith(("fc", "head", "norm", "conv_head", "trans_head")) for key in left), left
    assert str(loaded).startswith(f"Backbone: {loaded.tensors} tensors of a trained {name}; left out: ")
    with torch.no_grad():
        maps = backbone(images)
        info = [int(i) for i in backbone.feature_info.out_indices]
        if hasattr(classifier, "forward_intermediates"):
            own = classifier.forward_intermediates(images, indices=info, intermediates_only=True)
            if all(a.shape == b.shape for a, b in zip(own, maps, strict=True)):
                assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, maps, strict=True))


def test_other_weights_are_refused(tmp_path):
    classifier = glocal.create_model("resnet_micro", num_classes=2)
    save_model(classifier, tmp_path, ModelConfig.of_classifier(classifier, classes=("a", "b"), image_size=32))
    model = config_of("semantic_fpn", "vit_micro").build()
    with pytest.raises(GlocalError, match="expected those of vit_micro, got resnet_micro"):
        load_backbone_weights(backbone_of(model), tmp_path / "model.safetensors", "vit_micro")
    vit = glocal.create_model("vit_micro", num_classes=2, img_size=64)
    save_model(
        vit,
        tmp_path / "vit",
        ModelConfig.of_classifier(vit, classes=("a", "b"), image_size=64, keywords={"img_size": 64}),
    )
    with pytest.raises(GlocalError, match="pos_embed; was it trained at another image size"):
        load_backbone_weights(backbone_of(model), tmp_path / "vit/model.safetensors", "vit_micro")


def test_mean_and_std_come_with_the_weights(tmp_path):
    classifier = glocal.create_model("resnet_micro", num_classes=2)
    classifier.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    save_model(classifier, tmp_path, ModelConfig.of_classifier(classifier, classes=("a", "b"), image_size=32))
    recipe = load_recipe("detect_micro")
    for weights, mean in ((tmp_path / "model.safetensors", (0.1, 0.2, 0.3)), (None, MEAN)):
        config = recipe.replace(name="resnet_micro", weights=weights, head=HeadConfig("fcos"))
        assert model_config("detection", config, classes=CLASSES).mean == mean


def test_options_are_read():
    assert read_options("detection", ["channels=64", "score_thresh=0.1"]) == {"channels": 64, "score_thresh": 0.1}
    for text, message in (
        ("chanels=3", "nearest: channels"),
        ("channels", "expected KEY=VALUE"),
        ("channels=x", "expected a number"),
        ("channels=4", "from 8 to 1024"),
        ("score_thresh=nan", "from 0 to 1"),
    ):
        with pytest.raises(GlocalError, match=message):
            read_options("detection", [text])
    assert set(OPTIONS) == {"detection", "segmentation"}
