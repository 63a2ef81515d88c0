"""`pretrained=True` looks at the public places, and takes what lies there: the files are played by the fixtures."""

import pytest
import timm
import torch

import glocal
from tests.parity import recipe
from tests.parity.test_parity import load

PLACES = {
    "t2t_vit_7": ("t2t_vit_7", "releases/download/main/71.7_T2T_ViT_7.pth.tar"),
    "t2t_vit_t_14": ("t2t_vit_t_14", "releases/download/main/81.7_T2T_ViTt_14.pth.tar"),
    "t2t_vit_t_14.mm_in1k": ("t2t_vit_t_14.mmpretrain", "t2t-vit-t-14_8xb64_in1k_20211220-f7378dd5.pth"),
    "conformer_tiny_patch16": ("conformer_tiny_patch16.mmpretrain", "tiny-p16_3rdparty_8xb128_in1k_20211206-f6860372"),
    "cvt_13": ("cvt_13.huggingface", "microsoft/cvt-13"),
}


@pytest.fixture
def internet(monkeypatch):
    """Every download asks here: (place) -> state dict, and the places asked for."""
    asked, files = [], {}

    def answer(place, *args, **kwargs):
        asked.append(place)
        return dict(files)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", answer)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", answer)
    return asked, files


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("num_classes", [1000, 3])
def test_weights_of_the_public_place_load(internet, name, num_classes):
    asked, files = internet
    fixture, place = PLACES[name]
    manifest, _ = load(fixture)
    weights = {key: torch.from_numpy(array) for key, array in recipe.state_dict(manifest).items()}
    files["state_dict" if "huggingface" not in fixture else "model"] = weights
    model = glocal.create_model(name, pretrained=True, num_classes=num_classes)
    assert len(asked) == 1
    assert place in asked[0]
    expected = glocal.convert_checkpoint(name.split(".")[0], weights)
    heads = tuple(f"{head}." for head in model.classifiers())
    for key, tensor in model.state_dict().items():
        if num_classes == 1000 or not key.startswith(heads):
            assert torch.equal(tensor, expected[key]), key


OURS = set(glocal.list_models())


@pytest.mark.parametrize("name", [name for name in timm.list_pretrained("*") if name.split(".")[0] in OURS])
def test_each_place_belongs_to_its_model_and_has_its_preprocessing(name):
    cfg = timm.get_pretrained_cfg(name)
    place = cfg.url or cfg.hf_hub_id
    numbers = [
        part for part in name.split(".")[0].replace("patch", "p").split("_") if part[0].isdigit() or part[0] == "p"
    ]
    assert all(number in place for number in numbers)
    assert cfg.num_classes == 1000
    assert cfg.interpolation == "bicubic"
    assert cfg.input_size[1] == (384 if name.endswith("_384") else 224)
    squashed = name.startswith("cvt") and cfg.input_size[1] == 384
    assert cfg.crop_pct == (1.0 if squashed else {"t2t": 0.9, "cvt": 0.875, "con": 0.875}[name[:3]])
    assert (cfg.crop_mode == "squash") == squashed
    assert place.startswith(("https://github.com/yitu-opensource/", "https://download.openmmlab.com/", "microsoft/"))
