"""Saved models: what is written loads again bit for bit, and nothing else loads."""

import io
import json
import os
import pickle
import random
import struct
import time
import zipfile
from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf

import glocal
from glocal.errors import CheckpointError, GlocalError
from glocal.models.io import MAX_HEADER, ModelConfig, load_model, save_model

CLASSES = ("ant", "bee", "=cat", "d\udcff\x1b[31m")


def model_of(name="resnet_micro", seed=0, **kwargs):
    torch.manual_seed(seed)
    model = glocal.create_model(name, num_classes=len(CLASSES), **{"img_size": 32, **kwargs})
    for parameter in model.parameters():  # no zero or one of the initialisation is left
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save(folder, model=None, **kwargs):
    model = model or model_of()
    config = ModelConfig.of_classifier(model, **{"classes": CLASSES, "image_size": 32, **kwargs})
    save_model(model, folder, config)
    return folder / "model.safetensors"


def parts(file):
    """Header and tensor bytes of a safetensors file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, tensors):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def rewrite(file, change, *, beside=True):
    """Change the configuration of a file, and beside it, as one who forges the digest would not bother to."""
    header, tensors = parts(file)
    config = json.loads(header["__metadata__"]["config"])
    change(config)
    header["__metadata__"]["config"] = json.dumps(config)
    file.write_bytes(joined(header, tensors))
    if beside:
        file.with_name("config.json").write_text(json.dumps(config))


def equal(model, other):
    ours, others = model.state_dict(), other.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet_micro", {}),
        ("vit_micro", {"position": "sincos", "global_pool": "avg", "drop_path_rate": 0.1}),
        ("conformer_micro", {"depth": 6}),
        ("botnet_micro", {"attention_stages": (3, 4), "num_heads": 2}),
        ("cvt_micro", {}),
        ("resnet10t", {"img_size": None}),
        ("vit_tiny_patch16_224", {"img_size": 64, "class_token": False, "global_pool": "avg"}),
    ],
)
def test_what_is_saved_loads_again(tmp_path, name, kwargs):
    model = model_of(name, **kwargs)
    size = kwargs.get("img_size") or 32
    random_before = torch.get_rng_state()
    save(tmp_path, model, image_size=size, crop_pct=0.875)
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        saved = load_model(path)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert (saved.name, saved.classes, saved.image_size, saved.crop_pct) == (name, CLASSES, size, 0.875)
    assert (saved.mean, saved.std) == (tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))
    assert saved.identity == saved.digest
    assert len(saved.digest) == 64
    assert not saved.model.training
    images = torch.randn(2, 3, size, size)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(saved.model(images), model(images))
        assert torch.equal(theirs(images), model(images))
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)
    assert theirs.pretrained_cfg["input_size"] in ([3, size, size], (3, size, size))


def test_what_is_loaded_is_of_its_configuration(tmp_path):
    save(tmp_path, model_of("vit_micro", position="sincos"), crop_pct=0.5)
    saved = load_model(tmp_path, "classification")
    expected = ModelConfig(
        "classification", "vit_micro", CLASSES, 32, saved.mean, saved.std, crop_pct=0.5,
        keywords=saved.config.keywords,
    )  # fmt: skip
    assert saved.config == expected
    assert saved.config.keywords["position"] == "sincos"
    assert ModelConfig.from_json(saved.config.to_json(), 1000) == saved.config
    with pytest.raises(CheckpointError, match="expected a segmenter, got a classifier; `glocal eval` and"):
        load_model(tmp_path, "segmentation")


def test_a_lone_file_under_any_name_is_complete(tmp_path):
    file = save(tmp_path / "a").rename(tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text("{}")  # of something else
    assert equal(load_model(file).model, model_of())


def test_equal_models_give_equal_bytes(tmp_path):
    channels_last = model_of().to(memory_format=torch.channels_last).train()
    first, second = save(tmp_path / "a"), save(tmp_path / "b", channels_last)
    assert first.read_bytes() == second.read_bytes()
    assert channels_last.training
    again = load_model(first)
    third = save(tmp_path / "c", again.model, classes=again.classes)
    assert third.read_bytes() == first.read_bytes()
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", "model.safetensors"]


def test_the_digest_covers_weights_and_classes(tmp_path):
    digests = {
        load_model(save(tmp_path / "0")).digest,
        load_model(save(tmp_path / "1", model_of(seed=1))).digest,
        load_model(save(tmp_path / "2", classes=CLASSES[::-1])).digest,
        load_model(save(tmp_path / "3", crop_pct=0.9)).digest,
    }
    assert len(digests) == 4


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    model = model_of()
    with pytest.raises(GlocalError, match="a list of 4 names, got 3 entries"):
        save(tmp_path, model, classes=CLASSES[:3])
    with pytest.raises(GlocalError, match="each class once, got 'a' twice"):
        save(tmp_path, model, classes=("a", "b", "a", "c"))
    with pytest.raises(GlocalError, match="from 8 to 4096, got "):
        save(tmp_path, model, image_size=4)
    config = ModelConfig.of_classifier(model, classes=CLASSES, image_size=32)
    with pytest.raises(GlocalError, match="architecture, mean and std of the model, got others"):
        save_model(model, tmp_path, replace(config, mean=(0.1, 0.2, 0.3)))
    wider = model_of()
    wider.more = torch.nn.Linear(2, 2)
    with pytest.raises(GlocalError, match=r"left over: 'more\.weight'"):
        save(tmp_path, wider)
    with pytest.raises(GlocalError, match="expected float32"):
        save(tmp_path, model_of().half())
    with pytest.raises(GlocalError, match="one created by timm"):
        save(tmp_path, torch.nn.Linear(2, 2))
    model.layer1[0].bn2.running_var[3] = float("inf")
    with pytest.raises(GlocalError, match=r"NaN or infinity in layer1\.0\.bn2\.running_var"):
        save(tmp_path, model)
    assert not list(tmp_path.iterdir())


def test_files_of_timm_load_without_a_digest(tmp_path):
    model = model_of()
    data = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bicubic"}
    save_for_hf(
        model, str(tmp_path), model_config={"label_names": list(CLASSES)}, safe_serialization=True, data_config=data
    )
    saved = load_model(tmp_path)
    assert saved.digest is None
    assert (
        saved.identity == load_model(tmp_path).identity != load_model(save(tmp_path / "x", model_of(seed=1))).identity
    )
    assert saved.classes == CLASSES
    assert equal(saved.model, model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["label_names"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).classes == ("0", "1", "2", "3")
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no config\.json beside it"):
        load_model(tmp_path)


def test_a_folder_of_several_names_them(tmp_path):
    for run in ("vit_micro-f1-s0", "resnet_micro-f1-s0"):
        save(tmp_path / "runs" / run)
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    assert str(error.value).splitlines() == [
        f"{tmp_path}: expected one model, got a folder of 2; choose one:",
        f"  {tmp_path}/runs/resnet_micro-f1-s0",
        f"  {tmp_path}/runs/vit_micro-f1-s0",
    ]
    assert load_model(tmp_path / "runs/vit_micro-f1-s0").digest
    step = tmp_path / "run" / "checkpoints" / "step-00000010"
    save(step)
    (step / "config.json").unlink()
    assert load_model(step).digest
    with pytest.raises(CheckpointError, match="step-00000010"):
        load_model(tmp_path / "run")


def test_what_is_not_there_is_said(tmp_path):
    for path, what in [
        (tmp_path / "missing", "no such file or folder; check the path"),
        (tmp_path, r"expected a folder with model\.safetensors, got one without"),
        (tmp_path / "a\x1b.pth", r"a\\x1b\.pth: expected a \.safetensors file, got another; `glocal convert`"),
        (tmp_path / "pipe.safetensors", "is not a regular file"),
    ]:
        if path.suffix == ".pth":
            path.write_bytes(b"x")
        if path.name.startswith("pipe"):
            os.mkfifo(path)
        with pytest.raises(CheckpointError, match=what):
            load_model(path)


def test_a_config_beside_that_is_another_one_is_refused(tmp_path):
    file = save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))  # the same in another form
    load_model(file)
    config["label_names"] = config["label_names"][::-1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"config\.json beside it is not the one it was written with; delete that"
    ):
        load_model(file)


def test_mutated_files_do_not_load(tmp_path):
    check_mutants(tmp_path, 300)


@pytest.mark.slow
def test_many_mutated_files_do_not_load(tmp_path):
    check_mutants(tmp_path, 2000)


def check_mutants(folder, count):
    """Damage anywhere is an error, or of no consequence: never other weights, another model or other classes."""
    file = save(folder)
    original, content = load_model(file), file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    rng, loaded = random.Random(0), 0
    for i in range(count):
        mutant = bytearray(content)
        where = (0, start, len(content))[i % 2 :][:2]  # the header is small and holds most of what can go wrong
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.randrange(*where)
            match rng.randrange(6):
                case 0 | 1:
                    mutant[at] ^= 1 << rng.randrange(8)
                case 2:
                    mutant[at] = rng.randrange(256)
                case 3:
                    del mutant[at : at + rng.randrange(1, 50)]
                case 4:
                    mutant[at:at] = rng.randbytes(rng.randrange(1, 50))
                case 5:
                    mutant[at : at + 8] = mutant[rng.randrange(*where) :][:8]
            where = (where[0], min(where[1], len(mutant)))
        file.write_bytes(mutant)
        try:
            saved = load_model(file)
        except CheckpointError as error:
            assert str(file) in str(error)
            continue
        loaded += 1
        assert equal(saved.model, original.model)
        assert [getattr(saved, name) for name in ("name", "classes", "image_size", "crop_pct", "mean", "std")] == [
            getattr(original, name) for name in ("name", "classes", "image_size", "crop_pct", "mean", "std")
        ]
    assert loaded < count / 10
    for cut in (0, 7, 8, 20, start - 1, start, start + 1, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(CheckpointError):
            load_model(file)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def legacy(canary):
    return pickle.dumps({"state_dict": Payload(canary)}, protocol=2)


def zipped(canary):
    buffer = io.BytesIO()
    torch.save({"x": Payload(canary)}, buffer)
    assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


def test_pickles_are_not_unpickled(tmp_path):
    from glocal.checkpoints.read import read_checkpoint

    canary = tmp_path / "canary"
    for make in (legacy, zipped):
        for name in ("model.safetensors", "model.pth"):
            (tmp_path / name).write_bytes(make(canary))
            with pytest.raises(CheckpointError):
                load_model(tmp_path / name)
            with pytest.raises(CheckpointError):
                read_checkpoint(tmp_path / name)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_model(tmp_path)  # with model.pth alone
    assert not canary.exists()


HEADERS = {
    "2**62": lambda header, tensors: struct.pack("<Q", 2**62) + b"{}" + tensors,
    "90 MB": lambda header, tensors: joined(b"{" + b" " * 90_000_000 + b"}", tensors),
    "as large as allowed": lambda header, tensors: joined(
        json.dumps({f"tensor {i}": header["bn1.bias"] for i in range(90_000)}).encode()[: MAX_HEADER - 1] + b"}",
        tensors,
    ),
    "deep": lambda header, tensors: joined(b'{"a":' * 200_000 + b"1" + b"}" * 200_000, tensors),
    "deep list": lambda header, tensors: joined(b"[" * 8_000_000, tensors),
    "no object": lambda header, tensors: joined(b"[1, 2]", tensors),
    "metadata": lambda header, tensors: joined({**header, "__metadata__": [1]}, tensors),
    "metadata of numbers": lambda header, tensors: joined(
        {**header, "__metadata__": {"glocal": 1, "config": 2, "digest": 3}}, tensors
    ),
    "half of the metadata": lambda header, tensors: joined(
        {**header, "__metadata__": {k: v for k, v in header["__metadata__"].items() if k != "digest"}}, tensors
    ),
    "version 2": lambda header, tensors: joined(
        {**header, "__metadata__": {**header["__metadata__"], "glocal": "2\x1b[2J"}}, tensors
    ),
    "tensor NaN": lambda header, tensors: joined({**header, "NaN": header["bn1.bias"]}, tensors),
    "tensor with a bell": lambda header, tensors: joined({**header, "\x07\n": header["bn1.bias"]}, tensors),
    "a huge shape": lambda header, tensors: joined(
        {**header, "bn1.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, tensors
    ),
    "an unknown type": lambda header, tensors: joined(
        {**header, "bn1.bias": {**header["bn1.bias"], "dtype": "os.system"}}, tensors
    ),
    "another type": lambda header, tensors: joined(
        {**header, "bn1.bias": {**header["bn1.bias"], "dtype": "I32"}}, tensors
    ),
    "offsets of another": lambda header, tensors: joined(
        {**header, "bn1.bias": {**header["bn1.bias"], "data_offsets": header["bn1.weight"]["data_offsets"]}}, tensors
    ),
    "a name twice": lambda header, tensors: joined(
        json.dumps(header)[:-1].encode() + b', "bn1.bias": ' + json.dumps(header["bn1.weight"]).encode() + b"}", tensors
    ),
    "metadata twice": lambda header, tensors: joined(
        json.dumps(header)[:-1].encode() + b', "__metadata__": {"format": "pt"}}', tensors
    ),
    "more at the end": lambda header, tensors: joined(header, tensors + bytes(1_000)),
}


@pytest.mark.parametrize("hostile", HEADERS)
def test_hostile_headers_are_refused_at_once(tmp_path, hostile):
    file = save(tmp_path)
    (tmp_path / "config.json").unlink()
    file.write_bytes(HEADERS[hostile](*parts(file)))
    message = refused_at_once(file, tmp_path)
    assert ("the limit is" in message) == (hostile == "90 MB")  # and it is not even read


def refused_at_once(file, folder):
    began = time.process_time()
    with pytest.raises(CheckpointError) as error:
        load_model(file)
    assert time.process_time() - began < 2
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert "; " in message
    assert len(message) < 2_000
    assert not {"\x1b", "\x07", "\n"} & set(message)
    assert not (folder / "canary").exists()
    return message


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def put(*keys):
    """A change of a configuration: the value at the end of the keys."""
    *path, last, value = keys

    def change(config):
        for key in path:
            config = config[key]
        config[last] = value

    return change


CONFIGS = {
    "os.system": put("architecture", "os.system"),
    "a path": put("architecture", "local-dir:/tmp"),
    "the hub": put("architecture", "hf-hub:timm/resnet18.a1_in1k"),
    "another model": put("architecture", "resnet18"),
    "a tag": put("architecture", "resnet18.a1_in1k"),
    "a list": put("architecture", ["resnet_micro"]),
    "act_layer": put("model_args", "act_layer", "os.system"),
    "act": put("model_args", "act", "os.system"),
    "blocks": put("model_args", "blocks", ["os.system"] * 4),
    "pretrained": put("model_args", "pretrained", True),
    "pretrained_cfg": put("model_args", "pretrained_cfg", {"file": "canary"}),
    "checkpoint_path": put("model_args", "checkpoint_path", "canary"),
    "cache_dir": put("model_args", "cache_dir", "canary"),
    "scriptable": put("model_args", "scriptable", True),
    "_private": put("model_args", "__class__", "x"),
    "device": put("model_args", "device", "cuda"),
    "features_only": put("model_args", "features_only", True),
    "an object": put("model_args", "widths", {"os": "system"}),
    "nested": put("model_args", "widths", deep(20)),
    "very deep": put("model_args", "widths", deep(500)),
    "many blocks": put("model_args", "depths", [10**9] * 4),
    "some blocks": put("model_args", "depths", [60_000] * 4),
    "wide": put("model_args", "widths", [60_000] * 4),
    "wider": put("model_args", "widths", [10**400] * 4),
    "negative": put("model_args", "widths", [-1] * 4),
    "infinite": put("model_args", "stem_width", float("inf")),
    "not a number": put("model_args", "stem_width", float("nan")),
    "text for a number": put("model_args", "stem_width", "64"),
    "a long text": put("model_args", "act", "x" * 10**6),
    "huge images": put("model_args", "img_size", 60_000),
    "grey": put("model_args", "in_chans", 1),
    "model_args": put("model_args", [1]),
    "pretrained_cfg a list": put("pretrained_cfg", [1]),
    "size": put("pretrained_cfg", "input_size", [3, 10**9, 10**9]),
    "oblong": put("pretrained_cfg", "input_size", [3, 32, 64]),
    "no size": put("pretrained_cfg", "input_size", None),
    "mean": put("pretrained_cfg", "mean", [float("nan")] * 3),
    "means": put("pretrained_cfg", "mean", [0.5] * 4),
    "std": put("pretrained_cfg", "std", [0, 0, 0]),
    "large std": put("pretrained_cfg", "std", [10**400] * 3),
    "crop": put("pretrained_cfg", "crop_pct", 0),
    "crop text": put("pretrained_cfg", "crop_pct", "os.system"),
    "interpolation": put("pretrained_cfg", "interpolation", "bilinear"),
    "squash": put("pretrained_cfg", "crop_mode", "squash"),
    "classes": put("num_classes", 5),
    "no classes": put("num_classes", 0),
    "many classes": put("num_classes", 10**12),
    "true": put("num_classes", True),
    "labels": put("label_names", ["a"]),
    "labels twice": put("label_names", ["a"] * 4),
    "labels of numbers": put("label_names", [1, 2, 3, 4]),
    "labels in order": put("label_names", sorted(CLASSES, reverse=True)),
}


@pytest.mark.parametrize("hostile", CONFIGS)
def test_hostile_configurations_are_refused_at_once(tmp_path, hostile):
    file = save(tmp_path)
    rewrite(file, CONFIGS[hostile])
    refused_at_once(file, tmp_path)


@pytest.mark.parametrize("hostile", [name for name in CONFIGS if name != "labels in order"])
def test_a_hostile_configuration_beside_a_file_of_timm_is_refused(tmp_path, hostile):
    """No digest is in the way here: each check stands on its own."""
    file = save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    CONFIGS[hostile](config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    header, tensors = parts(file)
    del header["__metadata__"]
    file.write_bytes(joined(header, tensors))
    refused_at_once(file, tmp_path)


BROKEN = {
    "empty": "",
    "list": "[" * 10**6,
    "object": '{"a":' * 10**5,
    "two": "{} {}",
    "digits": "1" * 10**5,
    "nan": "nan",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_damaged_configurations_beside_a_file_of_timm_are_refused(tmp_path, text):
    tensors = model_of().state_dict()
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    refused_at_once(tmp_path / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    refused_at_once(tmp_path / "model.safetensors", tmp_path)


def test_weights_of_timm_that_are_not_finite_are_refused(tmp_path):
    file = save(tmp_path)
    tensors = load_model(file).model.state_dict()
    tensors["fc.bias"][1] = float("nan")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"finite weights, got NaN or infinity in fc\.bias"):
        load_model(file)
