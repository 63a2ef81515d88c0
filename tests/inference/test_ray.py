"""The ray engine says what the local one says."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glocal.errors import GlocalError
from glocal.inference import Inputs, list_inputs, predict_files
from tests.inference.making import Crashing, saved_model, write_images


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    inputs = list_inputs([str(write_images(tmp_path / "images", 2))])
    with pytest.raises(GlocalError, match=r"pip install glocal\[ray\]"):
        predict_files(saved_model(tmp_path / "model"), inputs, engine="ray")


@pytest.mark.slow
def test_ray_gives_what_the_local_engine_gives(tmp_path):
    """In another process: ray's threads and warnings stay out of this one."""
    pytest.importorskip("ray", reason="needs pip install glocal[ray]")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.inference.test_ray", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}  # ray's processes unpickle what is of the tests
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""  # nothing of ray's
    local, ray, again = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("local", "ray", "resumed"))
    assert len(local) == len(ray) == 41
    for expected, line in zip(map(json.loads, local), map(json.loads, ray), strict=True):
        assert (line["path"], line["error"]) == (expected["path"], expected["error"])
        assert [top["class"] for top in line["top"][:1]] == [top["class"] for top in expected["top"][:1]]
        mine, theirs = ({top["class"]: top["probability"] for top in entry["top"]} for entry in (line, expected))
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert again == ray
    assert json.loads((tmp_path / "crash.jsonl").read_text().splitlines()[1])["error"] == "the decoder crashed on it"


def main(root):
    import ray

    root = Path(root)
    images = write_images(root / "images", 40, bad=(5, 6))
    (images / "\udcff.png").write_bytes((images / "000.png").read_bytes())
    saved, inputs = saved_model(root / "model"), list_inputs([str(images)])
    predict_files(saved, inputs, root / "local.jsonl", batch_size=8, workers=0)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=40)  # one for all three jobs
    options = {"batch_size": 8, "workers": 1, "engine": "ray"}
    predict_files(saved, inputs, root / "ray.jsonl", **options)
    lines = (root / "ray.jsonl").read_bytes().splitlines(keepends=True)

    class StopError(Exception):
        """After some images."""

    def stop(prediction):
        if prediction.path == inputs.paths[11]:
            raise StopError

    try:
        predict_files(saved, inputs, root / "resumed.jsonl", take=stop, **options)
    except StopError:
        assert len((root / "resumed.jsonl.part").read_bytes().splitlines()) == 12 < len(lines)
    predict_files(saved, inputs, root / "resumed.jsonl", resume=True, **options)
    rows = np.arange(3)
    crashing = Inputs(tuple("abc"), (Crashing(1),), np.stack([np.zeros_like(rows), rows], axis=1))
    predict_files(saved, crashing, root / "crash.jsonl", **options)


if __name__ == "__main__":
    main(sys.argv[1])
