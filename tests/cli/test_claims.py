import json

import pytest

from glocal.claims import CLAIMS, FILE
from tests.shapes import write_folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of drawings, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "photos", num_images=120)
    return tmp_path / "photos"


def test_list(command):
    code, out, _ = command("claims", "list")
    assert code == 0
    assert all(claim.id in out for claim in CLAIMS)
    code, out, _ = command("claims", "list", "--json")
    rows = json.loads(out)
    assert [row["id"] for row in rows] == [claim.id for claim in CLAIMS]
    assert {row["measure"]["name"] for row in rows} >= {"top-1 accuracy"}


def test_run_one_claim_and_the_same_again(command, photos):
    arguments = ("claims", "run", "cvt-cls", "photos", "--budget", "1ep", "--seeds", "1", "--out", "out")
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "Training 2 of 2 runs" in err
    results = json.loads((photos.parent / "out" / FILE).read_text())
    (claim,) = results["claims"]
    assert f"{claim['verdict']:<12} cvt-cls" in out
    assert "not about ImageNet" in out
    assert results["command"] == "glocal " + " ".join(arguments)
    assert (photos.parent / "out/index.html").exists()
    assert claim["sentence"] in (photos.parent / "out/cvt-cls.html").read_text()
    code, _, err = command(*arguments)
    assert code == 0
    assert "Training " not in err
    written_again = photos.parent / "again"
    written_again.mkdir()
    (written_again / FILE).write_bytes((photos.parent / "out" / FILE).read_bytes())
    code, out, _ = command("claims", "report", "again")
    assert (code, out) == (0, "Report: again/index.html\n")
    for name in ("index.html", "cvt-cls.html"):
        assert (written_again / name).read_bytes() == (photos.parent / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cvt-clss", "photos"), "nearest: cvt-cls"),
        (("cvt-cls", "fotos"), "fotos"),
        (("cvt-cls", "photos", "--budget", "soon"), "expected an amount above 0"),
        (("cvt-cls", "photos", "--seeds", "0"), "from 1 to 100"),
        (("cvt-cls", "photos", "--device", "tpu"), "device: expected"),
        (("cvt-cls", "photos", "--image-size", "9999"), "8 to 1024"),
        (("cvt-cls", "photos", "--out", "photos/taken/x"), "cannot write"),
    ],
)
def test_a_wrong_call_exits_with_2(command, photos, arguments, message):
    (photos / "taken").write_text("a file")
    code, _, err = command("claims", "run", *arguments)
    assert code == 2
    assert message in err
    assert not list(photos.parent.glob("runs/*/runs/*"))


@pytest.mark.parametrize("text", ["{", "[]", '{"costs": {}}'])
@pytest.mark.parametrize("name", [FILE, "plan.json", "costs.json"])
def test_a_damaged_folder_exits_with_2(command, photos, name, text):
    arguments = ("claims", "run", "cost", "photos", "--out", "out")
    assert command(*arguments)[0] == 0
    (photos.parent / "out" / name).write_text(text)
    code, _, err = command(*arguments)
    assert code == 2
    assert name in err or "was started with other settings" in err
