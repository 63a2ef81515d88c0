"""One rule for what is in a folder of images."""

import os

from glocal.data.walk import list_folder, walk_folder


def names(entries):
    return [entry.name for entry in entries]


def test_hidden_and_system_names_are_left_out_and_links_stand_apart(tmp_path):
    for name in ("b.png", "a.png", ".hidden.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    for name in ("inside", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder-link").symlink_to(tmp_path / "inside")
    (tmp_path / "file-link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    listing = list_folder(tmp_path)
    assert [names(part) for part in listing] == [
        ["inside"], ["a.png", "b.png", "pipe"], ["file-link.png", "folder-link", "loop"],
    ]  # fmt: skip
    followed = list_folder(tmp_path, follow_links=True)
    assert [names(part) for part in followed] == [
        ["folder-link", "inside"], ["a.png", "b.png", "file-link.png", "loop", "pipe"], [],
    ]  # fmt: skip


def test_a_walk_is_in_order_and_ends_where_links_lead_back(tmp_path):
    for name in ("b/2/c.png", "b/1/b.png", "a/a.png", "z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/back").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b/1")
    expected = ["z.png", "a/a.png", "b/1/b.png", "b/2/c.png"]
    for follow_links in (False, True):
        walked = walk_folder(tmp_path, follow_links=follow_links)
        assert [os.path.relpath(e.path, tmp_path) for listing in walked for e in listing.files] == expected
