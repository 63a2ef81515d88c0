"""Every kind of detector and segmenter is on its page."""

import pytest

from glocal.heads import detection, segmentation
from tests.docs.blocks import ROOT


@pytest.mark.parametrize(
    ("page", "kinds"), [("detection.md", detection.KINDS), ("segmentation.md", segmentation.KINDS)]
)
def test_every_kind_is_on_its_page(page, kinds):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [kind for kind in kinds if f"`{kind}`" not in text] == []
