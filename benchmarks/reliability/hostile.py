"""2,000 mutated and more than 20 hostile checkpoints: no code run, nothing changed in silence, one error, 2 s each.

python benchmarks/reliability/hostile.py [--count 2000]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.record import record
from tests.models import test_io as tests

from glocal.checkpoints.read import read_checkpoint
from glocal.errors import CheckpointError

LIMIT = 2.0


class Timed:
    """A reader of files that remembers its longest call and how calls ended."""

    def __init__(self, read: Any) -> None:
        self.read, self.longest, self.calls, self.other = read, 0.0, 0, []

    def __call__(self, path: Any) -> Any:
        """Read, and remember."""
        self.calls += 1
        start = time.process_time()
        try:
            return self.read(path)
        except CheckpointError:
            raise
        except Exception as error:
            self.other.append(f"{path}: {type(error).__name__}")
            raise
        finally:
            self.longest = max(self.longest, time.process_time() - start)


def refuses(read: Any, path: Path) -> bool:
    """Whether a reader raises the one error."""
    try:
        read(path)
    except CheckpointError:
        return True
    except Exception:
        return False
    return False


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    count = parser.parse_args().count
    start = time.perf_counter()
    load, read = Timed(tests.load_model), Timed(read_checkpoint)
    tests.load_model = load
    with tempfile.TemporaryDirectory() as place:
        mutated = Path(place) / "mutated"
        mutated.mkdir()
        tests.check_mutants(mutated, count)  # raises at the first that is not refused and not the same model
        hostile, passed = 0, []
        for kind, cases in (("header", tests.HEADERS), ("config", tests.CONFIGS)):
            for name, make in cases.items():
                folder = Path(place) / f"{kind} {hostile}"
                file = tests.save(folder)
                (folder / "config.json").unlink()
                if kind == "header":
                    file.write_bytes(make(*tests.parts(file)))
                else:
                    tests.rewrite(file, make, beside=False)
                hostile += 1
                if not refuses(load, file):
                    passed.append(f"{kind}: {name}")
        canary = Path(place) / "canary"
        for make in (tests.legacy, tests.zipped):
            for name in ("model.safetensors", "model.pth", "model.bin"):
                file = Path(place) / name
                file.write_bytes(make(canary))
                for reader in (load, read):
                    hostile += 1
                    if not refuses(reader, file):
                        passed.append(f"{make.__name__} named {name}")
        ran = canary.exists()
    longest = max(load.longest, read.longest)
    other = load.other + read.other
    for line in (*passed, *other):
        print(line)
    record(
        "hostile",
        what=f"{count:,} mutated and {hostile} hostile checkpoints (pickles by reduce, zip and legacy, named "
        ".safetensors; headers; configurations): code executed, silent changes, other errors, longest time per file",
        asked=f"0, 0, 0, at most {LIMIT:g} s",
        found=f"{int(ran)}, {len(passed)}, {len(other)}, {longest:.2f} s",
        holds=not ran and not passed and not other and longest <= LIMIT,
        seed=0,
        seconds=time.perf_counter() - start,
        accepted=passed,
    )


if __name__ == "__main__":
    main()
