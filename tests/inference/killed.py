"""Run small jobs and kill each at an aimed moment: MODEL IMAGES, then pairs of FILE and MOMENT.

The moments: "side", when only the side file is written; "line N", inside the write of line N; "complete", when all
lines are written but the file has not its name; "renamed", when it has it but the side file is still there. Each job is
a fork of this process, which has imported all and run nothing: one import serves all.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from glocal.inference import list_inputs, output, predict_files
from glocal.models.io import load_model

BATCH_SIZE, TOP_K = 4, 2


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def aim(moment):
    if moment == "side":
        output.continue_lines = die
    elif moment.startswith("line"):
        output.SYNC_SECONDS = 0
        left = int(moment.split()[1])
        sync = output.OutputFile.sync

        def tear(file):
            nonlocal left
            left -= 1
            if left == 0:
                os.write(file.file.fileno(), file.waiting[: len(file.waiting) // 2])
                die()
            sync(file)

        output.OutputFile.sync = tear
    elif moment == "complete":
        os.replace = lambda old, new, replace=os.replace: die() if str(old).endswith(".part") else replace(old, new)
    else:
        assert moment == "renamed"
        output.sync = die


def job(model, images, out, *, resume, moment=None):
    torch.set_num_threads(1)
    if moment:
        aim(moment)
    inputs = list_inputs([str(images)])
    predict_files(load_model(model), inputs, Path(out), top_k=TOP_K, batch_size=BATCH_SIZE, workers=0, resume=resume)


if __name__ == "__main__":
    model, images, *aims = sys.argv[1:]
    for out, moment in zip(aims[::2], aims[1::2], strict=True):
        child = os.fork()
        if child == 0:
            try:
                job(model, images, out, resume=False, moment=moment)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), (moment, status)
        assert os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
