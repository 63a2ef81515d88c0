"""benchmarks/planted_mistakes.py plants into the source as it is: a line that has changed is to be mended there too."""

from pathlib import Path

import pytest
from benchmarks.planted_mistakes import MISTAKES

import glocal


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_the_line_is_there(mistake):
    _, file, right, wrong, _ = mistake
    source = (Path(glocal.__file__).parent / file).read_text(encoding="utf-8")
    assert right in source
    compile(source.replace(right, wrong), file, "exec")
