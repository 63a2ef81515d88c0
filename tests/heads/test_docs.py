"""The code of docs/detection.md and docs/segmentation.md runs, a page from top to bottom."""

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["detection.md", "segmentation.md"])
def test_the_page_runs(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export
        exec("\n".join(blocks), {})


@pytest.mark.parametrize("page", ["detection.md", "segmentation.md"])
def test_every_kind_is_on_its_page(page):
    from glocal.heads import detection, segmentation

    kinds = (detection if page == "detection.md" else segmentation).KINDS
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [kind for kind in kinds if f"`{kind}`" not in text] == []
