"""Run the small comparison in this process and kill it at an aimed moment: OUT WRITER MOMENT RECORD.

The moments are inside the write of a record: when its files are written but not yet digested, when it is complete but
not yet in place, and when it has just been put into place. The naive writer writes into the final folder.
"""

import json
import os
import signal
import sys
from pathlib import Path

from glocal.comparison import compare, costs
from glocal.comparison import store as module
from tests.comparison.asking import settings
from tests.shapes import data_source

out, writer, moment, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
written = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_naively(store, run_id, run, write_files):
    global written
    written += 1
    folder = store.runs / run_id
    folder.mkdir()
    write_files(folder)
    files = {path.name: module.sha256(path) for path in folder.iterdir()}
    (folder / "record.json").write_text(json.dumps({"run": run, "files": files})[: 40 if written == number else None])
    if written == number:
        die()


def at_call(function, when, *, before):
    """The function, with death before or after its call for which `when` is true."""

    def wrapped(*args):
        dies = when(*args)
        if dies and before:
            die()
        result = function(*args)
        if dies:
            die()
        return result

    return wrapped


def is_the_record(*_):
    global written
    written += 1
    return written == number


costs.TIMING_SECONDS = 0.02
if writer == "naive":
    module.Store.write = write_naively
elif moment == "files":
    once = lambda path: path.name == "model.safetensors" and is_the_record()  # noqa: E731
    module.sha256 = at_call(module.sha256, once, before=True)
else:
    Path.rename = at_call(Path.rename, is_the_record, before=moment == "complete")
compare(data_source(), settings(), out)
