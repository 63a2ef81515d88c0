"""Where pretrained weights are found, and that a missing network costs seconds."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import glocal  # noqa: F401 - registers its models
from glocal.errors import GlocalError
from glocal.models.creation import create
from glocal.models.pretrained import FoundWeights, find_weights

RESNET = "resnet18.a1_in1k"
TEN = [
    RESNET, "resnet34.a1_in1k", "resnet50.a1_in1k", "convnext_tiny.fb_in1k", "swin_tiny_patch4_window7_224.ms_in1k",
    "deit_tiny_patch16_224.fb_in1k", "vit_small_patch16_224.augreg_in21k", "cvt_13", "efficientnet_b0", "vgg11",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    """Empty caches, no token, and a hub that refuses connections."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    set_endpoint(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr("glocal.models.pretrained.get_token", lambda: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path


def set_endpoint(monkeypatch, url):
    """What the client makes of HF_ENDPOINT when it is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def server(monkeypatch):
    """A local hub: ``server(answer)`` lets ``answer(path) -> status, headers`` decide; returns the requests."""
    running, requests = [], []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                requests.append((self.command, self.path, dict(self.headers)))
                status, headers = answer(self.path)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()

            do_GET = do_HEAD  # noqa: N815

            def log_message(self, *args):
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        running.append(http)
        set_endpoint(monkeypatch, f"http://127.0.0.1:{http.server_port}")
        return requests

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


def write(path, content=b"123"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def in_hub_cache(root, repo, name, content=b"123"):
    """A file as the hub's client caches it."""
    folder = root / "hub" / f"models--{repo.replace('/', '--')}"
    write(folder / "refs" / "main", b"0123abc")
    return write(folder / "snapshots" / "0123abc" / name, content)


# Files.


def test_a_given_file_comes_first(tmp_path):
    given, other = write(tmp_path / "mine.pt"), write(tmp_path / "all" / f"{RESNET}.pth", b"12345")
    found = find_weights([RESNET, "botnet50"], {RESNET: given}, tmp_path / "all")
    assert found[RESNET] == FoundWeights(RESNET, "file", given, 3)
    assert find_weights([RESNET], folder=tmp_path / "all")[RESNET] == FoundWeights(RESNET, "folder", other, 5)
    assert found["botnet50"].weights is None


def test_a_missing_given_file_is_not_replaced_by_another(tmp_path):
    in_hub_cache(tmp_path, "timm/resnet18.a1_in1k", "model.safetensors")
    found = find_weights([RESNET], {RESNET: tmp_path / "gone.pt"})[RESNET]
    assert (found.where, found.weights) == ("none", None)
    assert "gone.pt, which is none; give another file" in found.reason


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
@pytest.mark.parametrize("asked", ["resnet18", "resnet18.a1_in1k"])
@pytest.mark.parametrize("stem", ["resnet18", "resnet18.a1_in1k"])
def test_names_with_and_without_the_default_tag(tmp_path, suffix, asked, stem):
    path = write(tmp_path / f"{stem}.{suffix}")
    assert find_weights([asked], folder=tmp_path)[asked] == FoundWeights(asked, "folder", path, 3)


def test_another_tag_needs_its_name(tmp_path):
    write(tmp_path / "resnet18.pth")
    other = "resnet18.fb_swsl_ig1b_ft_in1k"
    assert find_weights([other], folder=tmp_path)[other].where == "none"
    write(tmp_path / f"{other}.pth")
    assert find_weights([other], folder=tmp_path)[other].where == "folder"


def test_safetensors_come_before_a_pickle(tmp_path):
    for suffix in ("bin", "pt", "pth", "safetensors"):
        path = write(tmp_path / f"cvt_13.{suffix}")
    assert find_weights(["cvt_13:kv_stride=1"], folder=tmp_path)["cvt_13:kv_stride=1"].weights == path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_the_model(tmp_path, name):
    path = write(tmp_path / RESNET / name)
    assert find_weights([RESNET], folder=tmp_path)[RESNET] == FoundWeights(RESNET, "folder", path, 3)
    assert find_weights([RESNET], {RESNET: tmp_path / RESNET})[RESNET] == FoundWeights(RESNET, "file", path, 3)


def test_a_directory_in_place_of_a_file_is_ignored(tmp_path):
    (tmp_path / f"{RESNET}.safetensors").mkdir()
    assert find_weights([RESNET], folder=tmp_path)[RESNET].where == "none"
    path = write(tmp_path / f"{RESNET}.pth")
    assert find_weights([RESNET], folder=tmp_path)[RESNET].weights == path
    assert find_weights([RESNET], folder=tmp_path / "nowhere")[RESNET].where == "none"


def test_models_without_released_weights(server, tmp_path):
    requests = server(lambda path: (200, {}))
    found = find_weights(["botnet50", "vit_micro"])
    reason = "it has no released weights; put botnet50.safetensors into --weights-dir"
    assert found["botnet50"] == FoundWeights("botnet50", "none", None, None, reason)
    assert requests == []
    path = write(tmp_path / "botnet50.safetensors")  # the user's own
    assert find_weights(["botnet50"], folder=tmp_path)["botnet50"].weights == path


def test_an_unknown_model():
    with pytest.raises(GlocalError, match="unknown model 'resnet81'; nearest:"):
        find_weights(["resnet81"])


# Cache.


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_cached_weights_load_without_network(tmp_path, monkeypatch, name):
    torch.manual_seed(3)
    source = timm.create_model("resnet18", num_classes=1000)
    path = in_hub_cache(tmp_path, "timm/resnet18.a1_in1k", name, b"")
    if name.endswith("safetensors"):
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    found = find_weights([RESNET], timeout=0.1)[RESNET]
    assert found == FoundWeights(RESNET, "cache", path, path.stat().st_size)

    def asked(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", asked)
    model = create(RESNET, num_classes=3, image_size=32, seed=0, weights=found.weights)
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_cached_weights_of_another_layout_load(tmp_path):
    """What timm reads by a loader of its own (JAX) is cached in its own layout."""
    name = "vit_tiny_patch16_224.augreg_in21k"
    source = timm.create_model(name, num_classes=21843)
    path = in_hub_cache(tmp_path, f"timm/{name}", "model.safetensors", b"")
    save_file(source.state_dict(), path)
    model = create(name, num_classes=3, image_size=224, seed=0, weights=find_weights([name])[name].weights)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)


def test_safetensors_are_taken_as_timm_does(tmp_path):
    in_hub_cache(tmp_path, "microsoft/cvt-13", "pytorch_model.bin")
    path = in_hub_cache(tmp_path, "microsoft/cvt-13", "model.safetensors")
    assert find_weights(["cvt_13"])["cvt_13"].weights == path


def test_models_without_the_hub_are_in_the_folder_of_torch(tmp_path):
    path = write(tmp_path / "torch" / "hub" / "checkpoints" / "81.5_T2T_ViT_14.pth.tar")
    assert find_weights(["t2t_vit_14"])["t2t_vit_14"] == FoundWeights("t2t_vit_14", "cache", path, 3)


def test_a_half_cached_model_is_not_found(tmp_path):
    path = in_hub_cache(tmp_path, "timm/resnet18.a1_in1k", "model.safetensors")
    path.unlink()
    path.symlink_to(tmp_path / "blobs" / "gone")
    assert find_weights([RESNET])[RESNET].where == "none"


# Network.


def test_a_hub_that_has_them(server):
    def answer(path):
        if path.startswith("/timm/resnet18"):
            return 302, {"Location": "http://127.0.0.1:1/storage", "X-Linked-Size": "46807446", "Content-Length": "0"}
        if path.startswith("/microsoft/cvt-13/"):
            return 307, {"Location": path.replace("microsoft", "moved"), "Content-Length": "0"}
        return 200, {"Content-Length": "77"}

    requests = server(answer)
    found = find_weights([RESNET, "cvt_13", "resnet34.a1_in1k"])
    assert list(found.values()) == [
        FoundWeights(RESNET, "network", "pretrained", 46807446),
        FoundWeights("cvt_13", "network", "pretrained", 77),
        FoundWeights("resnet34.a1_in1k", "network", "pretrained", 77),
    ]
    assert {method for method, _, _ in requests} == {"HEAD"}
    assert "/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in {path for _, path, _ in requests}


def test_a_token_is_not_taken_to_another_host(server, monkeypatch):
    there = server(lambda path: (200, {}))
    other = constants.ENDPOINT.replace("127.0.0.1", "localhost")
    here = server(lambda path: (302, {"Location": f"{other}{path}"}))
    assert here is there
    monkeypatch.setattr("glocal.models.pretrained.get_token", lambda: "secret")
    assert find_weights([RESNET])[RESNET].where == "network"
    assert [headers.get("Authorization") for _, _, headers in here] == ["Bearer secret", None]


def test_a_hub_that_lacks_one(server):
    def answer(path):
        if "resnet18" in path:
            return 404, {}
        if "resnet34" in path:
            return 401, {}
        if "cvt" in path and path.endswith("safetensors"):
            return 404, {}
        return 200, {}

    server(answer)
    host = constants.ENDPOINT.removeprefix("http://")
    found = find_weights([RESNET, "resnet34.a1_in1k", "cvt_13", "resnet50.a1_in1k"])
    assert found[RESNET].reason == (
        f"{host} answers 404 (no such file) for timm/resnet18.a1_in1k/resolve/main/pytorch_model.bin; "
        "put resnet18.a1_in1k.safetensors into --weights-dir"
    )
    assert found["resnet34.a1_in1k"].reason.startswith(
        f"{host} answers 401 (no such repository, or it asks for a token: HF_TOKEN) for timm/resnet34.a1_in1k/"
    )
    assert [one.where for one in found.values()] == ["none", "none", "network", "network"]


def test_no_network():
    start = time.monotonic()
    found = find_weights([*TEN, "botnet50"])
    assert time.monotonic() - start < 2
    host = constants.ENDPOINT.removeprefix("http://")
    for name in TEN:
        help_ = f"put {name}.safetensors into --weights-dir"
        assert found[name] == FoundWeights(
            name, "none", None, None, f"{host} cannot be reached (Connection refused); {help_}"
        )
    assert found["botnet50"].reason.startswith("it has no released weights")


def test_a_host_without_an_address(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    set_endpoint(monkeypatch, "https://huggingface.co")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    reason = "huggingface.co cannot be reached (Name or service not known)"
    assert find_weights([RESNET])[RESNET].reason == f"{reason}; put {RESNET}.safetensors into --weights-dir"


def test_a_hub_that_hangs_costs_the_timeout_once(server):
    stop = threading.Event()
    requests = server(lambda path: (stop.wait(20), (200, {}))[1])
    start = time.monotonic()
    found = find_weights(TEN, timeout=1.0)
    taken = time.monotonic() - start
    asked = len(requests)
    stop.set()
    assert 0.9 < taken < 2.0
    assert asked == len(TEN)
    host = constants.ENDPOINT.removeprefix("http://")
    assert found[RESNET].reason == (
        f"no answer from {host} within 1 s; put resnet18.a1_in1k.safetensors into --weights-dir"
    )
    assert {one.where for one in found.values()} == {"none"}


def test_names_that_are_looked_up_forever(monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: stop.wait(20) and [])
    start = time.monotonic()
    found = find_weights(TEN, timeout=0.5)
    taken = time.monotonic() - start
    stop.set()
    assert taken < 1.5
    assert all(one.reason.startswith("no answer from ") for one in found.values())


def test_one_slow_answer_does_not_hide_the_others(server):
    stop = threading.Event()
    server(lambda path: (stop.wait(20) if "resnet18" in path else None, (200, {}))[1])
    found = find_weights(TEN, timeout=1.5)
    stop.set()
    assert [name for name, one in found.items() if one.where != "network"] == [RESNET]


def test_offline_means_no_attempt(server, monkeypatch, tmp_path):
    requests = server(lambda path: (200, {}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path = in_hub_cache(tmp_path, "microsoft/cvt-13", "model.safetensors")
    found = find_weights([RESNET, "cvt_13", "t2t_vit_14"])
    assert found[RESNET].reason == (
        "not cached, and HF_HUB_OFFLINE forbids to download them; unset it, or put resnet18.a1_in1k.safetensors into "
        "--weights-dir"
    )
    assert [one.where for one in found.values()] == ["none", "cache", "none"]
    assert found["cvt_13"].weights == path
    assert requests == []


def test_the_variables_of_the_hub_are_honoured(server, tmp_path):
    requests = server(lambda path: (200, {"Content-Length": "9"}))
    in_hub_cache(tmp_path, "microsoft/cvt-13", "model.safetensors")
    code = (
        "import glocal; from glocal.models.pretrained import find_weights\n"
        f"print([(one.where, one.num_bytes) for one in find_weights(['cvt_13', '{RESNET}']).values()])"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": constants.ENDPOINT}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[('cache', 3), ('network', 9)]\n"
    assert len(requests) == 1
