"""Files that are whole or not there, and names that are safe to print."""

import os
import signal
import subprocess
import sys
import time
import unicodedata
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glocal.data.scan import scan_lock
from glocal.errors import GlocalError
from glocal.files import atomic_write_bytes, atomic_write_text, lock, printable, publish
from glocal.inference.output import open_output
from glocal.run_dir import hold_folder

WRITE_FOREVER = """
import sys
from glocal.files import atomic_write_bytes
for i in range(10**9):
    atomic_write_bytes(sys.argv[1], bytes([i % 256]) * 1_000_000)
"""


def test_a_file_has_its_new_content_and_the_usual_rights(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "a", "one")
        atomic_write_text(tmp_path / "a", "zw\u00f6lf \udcff")
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_bytes() == b"zw\xc3\xb6lf \\udcff"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a"]


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_killed_at_any_moment_a_file_is_whole(tmp_path):
    path = tmp_path / "a"
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert len(content) == 1_000_000
        assert len(set(content)) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\u00e9 \u732b", "caf\u00e9 \u732b"),
        ("a\nb\tc\x1b[31m", r"a\nb\tc\x1b[31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff\x9b", r"\udcff\x9b"),
        ("[red]x[/red]", "[red]x[/red]"),  # rich's own `escape` is for markup
    ],
)
def test_names_are_shown_without_their_effects(name, shown):
    assert printable(name) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_shown_can_be_encoded_and_is_one_line(name):
    shown = printable(name)
    shown.encode()
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@contextmanager
def predictions(folder):
    try:
        with open_output(folder / "o.jsonl", {}, ("a",), top_k=1, resume=True):
            yield
    except GlocalError as error:  # it names no process
        raise GlocalError(str(error).replace("another process is writing", "is in use by process")) from None


@contextmanager
def cache(folder):
    """Waiting for it, as a second process does, would not end."""
    with open(folder / "c.lock", "ab") as file:
        try:
            lock(file)
        except BlockingIOError:
            raise GlocalError("is in use by process") from None
    with scan_lock(folder / "c.json", shown=False):
        yield


@pytest.mark.parametrize("hold", [hold_folder, predictions, cache])
def test_a_forked_process_holds_nothing(tmp_path, hold):
    """Workers live on for seconds when their parent is killed; what it held is free at once."""
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        with hold(tmp_path):
            if os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            os.write(write, b"!")
            time.sleep(20)
            os._exit(0)
    os.read(read, 1)
    with pytest.raises(GlocalError, match="is in use by process"), hold(tmp_path):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with hold(tmp_path):
        pass


def test_all_is_on_the_disk_before_the_first_name(tmp_path, monkeypatch):
    done = []
    moves = [(tmp_path / f"new{name}", tmp_path / name) for name in "ab"]
    for file, path in moves:
        file.write_text("new")
        path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: done.append(sum(path.read_text() == "new" for _, path in moves)))
    publish(*moves)
    assert done == [0, 0, 2]
