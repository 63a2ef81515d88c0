"""Claims of the catalogue on real images, and the command killed in the middle: minutes, so not in the quick suite."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time

import pytest

from glocal.claims import FILE, choose, run_claims
from glocal.data import load_data
from tests.claims.making import swapped

pytestmark = pytest.mark.slow


def test_a_claim_of_the_catalogue_is_supported_and_with_its_arms_swapped_contradicted(tmp_path):
    (claim,) = choose("padding-position")
    other = dataclasses.replace(swapped(claim, "zero padding", "circular padding"), id="swapped")
    results = run_claims(
        [claim, other], load_data("fashion-mini"), tmp_path, budget="0.5ep", seeds=2, device="cpu", side_by_side=True
    )
    assert {claim["id"]: claim["verdict"] for claim in results["claims"]} == {
        "padding-position": "supported",
        "swapped": "contradicted",
    }


def test_what_is_killed_goes_on_to_the_same_verdicts(tmp_path):
    command = [sys.executable, "-m", "glocal", "claims", "run", "cvt-cls,two-heads", "fashion-mini"]
    command += ["--budget", "0.05ep", "--seeds", "2", "--device", "cpu", "--out"]

    def start(out):
        with (tmp_path / "errors.txt").open("w") as errors:
            return subprocess.Popen([*command, out], stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)

    def finish(out):
        with start(out) as process:
            assert process.wait(600) == 0, (tmp_path / "errors.txt").read_text()
        results = json.loads((out / FILE).read_text())
        return [(c["id"], c["verdict"], c["comparisons"], [a["by_seed"] for a in c["arms"]]) for c in results["claims"]]

    began = time.monotonic()
    whole = finish(tmp_path / "whole")
    took = time.monotonic() - began
    moments = random.Random(0)
    for attempt in range(3):
        with start(tmp_path / f"{attempt}") as process:
            time.sleep(moments.uniform(0, took))
            os.killpg(process.pid, 9)
            process.wait()
        assert finish(tmp_path / f"{attempt}") == whole, attempt
