"""`glocal check` as a person calls it."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.data.making import damage, encoded, folder, picture


@pytest.fixture(autouse=True)
def own_place(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def glocal(*arguments: str) -> subprocess.CompletedProcess:
    result = subprocess.run([sys.executable, "-m", "glocal", *arguments], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr
    return result


def test_a_folder_of_images_is_fine(tmp_path):
    root = folder(tmp_path / "data", {"ant": 5, "bee": 10})
    result = glocal("check", str(root))
    assert result.returncode == 0
    assert "12 train and 3 val images: 20% of each class held out for val, split seed 0" in result.stdout
    assert Path("skipped.jsonl").read_text() == ""


def test_damaged_files_are_counted_and_listed(tmp_path):
    root = folder(tmp_path / "data", {"ant": 50, "bee": 50})
    bad = damage(root, ["ant", "bee"], count=20)
    result = glocal("check", str(root), "--out", str(tmp_path / "bad.jsonl"), "--workers", "2")
    assert result.returncode == 1
    assert f"Unusable files: 20, listed with reasons in {tmp_path / 'bad.jsonl'}" in result.stdout
    listed = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [entry["path"] for entry in listed] == bad
    assert all(entry["reason"] for entry in listed)
    assert "empty file" in result.stdout
    assert "above the limits" in result.stdout
    assert "80 train and 20 val images" in result.stdout


def test_names_cannot_drive_the_terminal(tmp_path):
    root = folder(tmp_path / "data", {"[red]x": 3, "a\x1b[31m": 3, "\u202eb": 3, "<script>": 3})
    (root / "[red]x" / "\x1b[2J.png").write_bytes(b"")
    result = glocal("check", str(root))
    assert result.returncode == 1
    assert "[red]x" in result.stdout
    assert "a\\x1b[31m" in result.stdout
    assert not {"\x1b", "\u202e"} & set(result.stdout + result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing",), "arrangement, mix, got missing, which is neither"),
        (("fashion-mnits",), "nearest: fashion-mnist"),
        ((".",), "got a folder without class folders"),
        ((".", "--max-pixels", "0"), "--max-pixels"),
        ((".", "--colour"), "No such option"),
        ((), "Missing argument"),
    ],
)
def test_bad_calls_say_so_and_exit_with_2(arguments, message):
    result = glocal("check", *arguments)
    assert result.returncode == 2
    assert message in " ".join((result.stdout + result.stderr).split())


def test_an_unwritable_list_is_named(tmp_path):
    root = folder(tmp_path / "data", {"ant": 5, "bee": 5})
    (root / "ant" / "bad.png").write_bytes(b"x")
    result = glocal("check", str(root), "--out", str(tmp_path / "no" / "where.jsonl"))
    assert result.returncode == 2
    assert "--out: expected a writable path" in result.stderr


def test_the_list_goes_into_a_folder_and_duplicates_are_noted(tmp_path):
    root = folder(tmp_path / "data" / "train", {"ant": 3, "bee": 3}).parent
    folder(root / "val", {"bee": 2, "ant": 1}, size=(20, 20))
    shutil.copy(root / "train" / "ant" / "000.png", root / "val" / "ant" / "again.png")
    (root / "val" / "bee" / "notes.txt").write_text("hello")
    os.link(root / "train" / "ant" / "000.png", root / "train" / "ant" / "link.png")
    result = glocal("check", str(root), "--out", str(tmp_path))
    assert result.returncode == 1
    assert "Note: images of val that are also in train, byte for byte: 1 (val/ant/again.png" in result.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert rows == [
        ["ant", "3", "2", "1"],
        ["bee", "3", "2", "1"],
        ["all", "6", "4", "2"],
        ["the same file as another", "1"],
        ["not a readable JPEG, PNG, WebP, BMP, TIFF or GIF", "1"],
    ]
    assert [json.loads(line)["path"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == [
        "train/ant/link.png",
        "val/bee/notes.txt",
    ]


def test_shards_are_counted_and_what_is_bad_in_them_listed(tmp_path):
    for part, count, start in (("train", 2, 0), ("val", 1, 50)):
        for shard in range(count):
            with tarfile.open(tmp_path / f"{part}-{shard:03d}.tar", "w") as archive:
                for i in range(start + 10 * shard, start + 10 * shard + 10):
                    content = b"" if i == 13 else encoded(picture(i), "PNG")
                    for name, data in ((f"{i:04d}.png", content), (f"{i:04d}.cls", b"%d" % (i % 2))):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        if i != 4 or not name.endswith("cls"):
                            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "classes.txt").write_text("ant\n[red]bee\x1b\n")
    result = glocal("check", str(tmp_path / "train-{000..001}.tar"))
    assert result.returncode == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert rows == [
        ["ant", "9", "5", "0"],
        ["[red]bee\\x1b", "9", "5", "1"],
        ["no class", "0", "0", "1"],
        ["all", "18", "10", "2"],
        ["no label", "1"],
        ["empty file", "1"],
    ]
    assert "18 train and 10 val images: train and val as in the shards" in result.stdout
    assert [json.loads(line)["path"] for line in Path("skipped.jsonl").read_text().splitlines()] == [
        "train-000.tar/0004.png",
        "train-001.tar/0013.png",
    ]
    missing = glocal("check", str(tmp_path / "train-{000..004}.tar"))
    assert missing.returncode == 2
    assert "expected 5 shards, got 2; missing: 3" in " ".join(missing.stderr.split())


def test_help_shows_examples_and_exit_codes():
    lines = [line.strip() for line in glocal("check", "--help").stdout.splitlines()]
    assert "Examples:" in lines
    assert "glocal check photos --max-pixels 100000000" in lines
    assert "Exit code 0 if every file is usable, 1 if some are not, 2 if DATA is unusable" in " ".join(lines)


def test_builtin_names_are_answered():
    result = glocal("check", "fashion-mini")
    assert result.returncode == 0
    assert "10000 train and 2000 val images" in result.stdout
