"""Every kind of detector and segmenter is on its page and in the help."""

import re

import pytest

from glocal.cli.detect import Detector, Preset
from glocal.heads import detection, segmentation
from glocal.heads.settings import OPTIONS
from tests.docs.blocks import ROOT


@pytest.mark.parametrize(
    ("page", "kinds"), [("detection.md", detection.KINDS), ("segmentation.md", segmentation.KINDS)]
)
def test_every_kind_is_on_its_page(page, kinds):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [kind for kind in kinds if f"`{kind}`" not in text] == []


def test_the_help_lists_the_detectors():
    """No command imports the heads, and with them torch, for its help."""
    (option,) = Detector.__metadata__
    assert re.split(r", | or ", option.help.rstrip(".")) == [*detection.KINDS]
    (preset,) = Preset.__metadata__
    assert set(detection.PRESETS) <= set(re.findall(r"\w+", preset.help))


def test_the_page_of_the_commands_lists_detectors_and_options():
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    (detectors,) = re.findall(r"^\| `--detector` \| (.*) \|$", text, re.MULTILINE)
    assert re.findall(r"`(\w+)`", detectors) == [*detection.KINDS]
    (options,) = re.findall(r"^\| `--option KEY=VALUE` \| (.*) \|$", text, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", options)) == {name for of_task in OPTIONS.values() for name in of_task}
