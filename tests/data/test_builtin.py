"""The data that needs no folder."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from glocal.data import builtin, load_data
from glocal.errors import GlocalError

PACKAGE = Path(builtin.__file__).parent
whole_set = pytest.mark.skipif(not builtin.DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")


def test_fashion_mini_is_what_was_picked():
    source = load_data("fashion-mini")
    assert source.fingerprint == "52f619a4f750e9616704df9d414cc274a30d9ac8ea64b9a35823d1f2cbc16845"
    assert np.bincount(source.train.labels).tolist() == [1000] * 10
    assert np.bincount(source.val.labels).tolist() == [200] * 10
    image = source.train.image(0)
    assert (image.mode, image.size) == ("RGB", (28, 28))
    assert source.classes[source.train.labels[0]] == "Ankle boot"
    assert sum(file.stat().st_size for file in PACKAGE.iterdir() if file.is_file()) <= 6 * 2**20
    assert "Zalando SE" in (PACKAGE / "LICENSE-fashion-mnist").read_text()


@whole_set
def test_fashion_mini_follows_its_rule(tmp_path):
    mini, whole = load_data("fashion-mini"), load_data("fashion-mnist")
    assert (len(whole.train), len(whole.val)) == (60_000, 10_000)
    for part, per_class in builtin.MINI.items():
        picked = builtin.pick_mini(getattr(whole, part).labels, per_class)
        assert np.array_equal(getattr(mini, part).labels, getattr(whole, part).labels[picked])
        assert np.array_equal(getattr(mini, part).store.pixels, getattr(whole, part).store.pixels[picked])


def write_idx(path: Path, values: np.ndarray, *, zipped: bool) -> None:
    content = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()
    path = path.with_name(path.name + ".gz") if zipped else path
    path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture(params=[True, False], ids=["gz", "plain"])
def small_mnist(request, tmp_path):
    for part, (images, labels) in builtin.FILES.items():
        count = {"train": 20, "val": 10}[part]
        write_idx(
            tmp_path / images, np.arange(count * 784, dtype=np.uint8).reshape(count, 28, 28), zipped=request.param
        )
        write_idx(tmp_path / labels, np.arange(count, dtype=np.uint8) % 10, zipped=request.param)
    return tmp_path


def test_the_whole_set_comes_from_a_folder_or_the_environment(small_mnist, monkeypatch):
    source = load_data(f"fashion-mnist:{small_mnist}")
    assert (len(source.train), len(source.val)) == (20, 10)
    assert np.asarray(source.train.image(1))[0, :3, 0].tolist() == [784 % 256, 785 % 256, 786 % 256]
    monkeypatch.setenv("GLOCAL_DATA", str(small_mnist))
    assert load_data("fashion-mnist").fingerprint == source.fingerprint


@pytest.mark.parametrize(
    "harm", [lambda b: b[:-100], lambda b: b"", lambda b: b"\0\0\x0d\x03" + b[4:], lambda b: b[:2]]
)
def test_a_damaged_idx_file_is_named(small_mnist, harm):
    for file in small_mnist.glob("train-images*"):
        file.write_bytes(harm(file.read_bytes()))
        with pytest.raises(GlocalError, match=f"expected an idx file, got .*{file.name}"):
            load_data(f"fashion-mnist:{small_mnist}")


def test_labels_that_do_not_fit_are_named(small_mnist):
    zipped = next(small_mnist.glob("train-labels*")).suffix == ".gz"
    write_idx(small_mnist / "train-labels-idx1-ubyte", np.arange(20, dtype=np.uint8), zipped=zipped)
    with pytest.raises(GlocalError, match="expected labels 0 to 9 in train"):
        load_data(f"fashion-mnist:{small_mnist}")
    write_idx(small_mnist / "train-labels-idx1-ubyte", np.arange(19, dtype=np.uint8), zipped=zipped)
    with pytest.raises(GlocalError, match=r"got images \(20, 28, 28\) and labels \(19,\)"):
        load_data(f"fashion-mnist:{small_mnist}")


def test_a_missing_file_is_named(small_mnist):
    for file in small_mnist.glob("t10k-labels*"):
        file.unlink()
    with pytest.raises(GlocalError, match="expected t10k-labels-idx1-ubyte or "):
        load_data(f"fashion-mnist:{small_mnist}")


def test_a_failed_download_says_where_it_looked(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    def fail(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(builtin, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(FashionMNIST, "download", fail)
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GLOCAL_DATA", raising=False)
    looked = f"not found in {tmp_path / 'debian'}, {tmp_path / 'cache' / 'FashionMNIST' / 'raw'}"
    with pytest.raises(GlocalError, match=rf"{looked}, and the download failed \(no network\).*dataset-fashion-mnist"):
        load_data("fashion-mnist")
