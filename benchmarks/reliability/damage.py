"""Damage the newest checkpoint in 200 ways and resume: the one before it is taken, and the bad file named.

python benchmarks/reliability/damage.py [CASES]     200
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability import forked
from benchmarks.reliability.kill import die
from benchmarks.reliability.record import record

SEED = 0
KILLED_AT = 5
"""A run that is killed in its fifth step has the checkpoints of steps 3 and 4."""
BEFORE, NEWEST = "step-00000003", "step-00000004"
FILES = ("model.safetensors", "optim.safetensors", "state.json", "config.json", "recipe.yaml", "MANIFEST.json")
DIFFERENT = ("model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json")
"""Files that are not the same in two checkpoints."""
GARBAGE = (b"", b"{", b"{}", b"[]", b"null", b"0", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b"NaN", b"{}\n{}", b"\0" * 64)

Draw = random.Random
Damage = Callable[[Path, Path, Draw], str]
"""Of a checkpoint, beside the one before it: the name of what must be named as bad, "" for the folder itself."""


def flip(path: Path, _: Path, draw: Draw) -> str:
    """A bit."""
    name = draw.choice(FILES)
    content = bytearray((path / name).read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    (path / name).write_bytes(content)
    return name


def flip_in_manifest(path: Path, _: Path, draw: Draw) -> str:
    """A bit where names, sizes and digests are."""
    content = bytearray((path / "MANIFEST.json").read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    (path / "MANIFEST.json").write_bytes(content)
    return "MANIFEST.json"


def truncate(path: Path, _: Path, draw: Draw) -> str:
    """At any length."""
    name = draw.choice(FILES)
    os.truncate(path / name, draw.randrange((path / name).stat().st_size))
    return name


def empty(path: Path, _: Path, draw: Draw) -> str:
    """As after a power cut without fsync."""
    name = draw.choice(FILES)
    os.truncate(path / name, 0)
    return name


def delete(path: Path, _: Path, draw: Draw) -> str:
    """A file."""
    name = draw.choice(FILES)
    (path / name).unlink()
    return name


def extra(path: Path, _: Path, draw: Draw) -> str:
    """A file or folder that does not belong there."""
    name = draw.choice(["model.safetensors.bak", ".hidden", "optim.pt", "x\ny", "ü"])
    draw.choice([Path.touch, Path.mkdir])(path / name)
    return name if name != "x\ny" else "x\\ny"


def swap(path: Path, _: Path, draw: Draw) -> str:
    """Two files."""
    one, other = draw.sample(FILES, 2)
    (path / one).rename(path / "aside")
    (path / other).rename(path / one)
    (path / "aside").rename(path / other)
    return ""  # either is bad


def old(path: Path, before: Path, draw: Draw) -> str:
    """A file of the checkpoint before."""
    name = draw.choice(DIFFERENT)
    shutil.copy(before / name, path / name)
    return name


def garbage(path: Path, _: Path, draw: Draw) -> str:
    """In place of JSON."""
    name = draw.choice(["state.json", "config.json", "MANIFEST.json"])
    (path / name).write_bytes(draw.choice(GARBAGE))
    return name


def zeros(path: Path, _: Path, draw: Draw) -> str:
    """A block of it, or all, its size kept."""
    name = draw.choice(FILES)
    content = bytearray((path / name).read_bytes())
    start = draw.choice([0, draw.randrange(len(content))])
    length = len(content[start:]) if draw.random() < 0.5 else len(content[start : start + 512])
    if not any(content[start : start + length]):
        start, length = 0, len(content)
    content[start : start + length] = bytes(length)
    (path / name).write_bytes(content)
    return name


def longer(path: Path, _: Path, draw: Draw) -> str:
    """Bytes too many, at the end or in between."""
    name = draw.choice(FILES)
    content = (path / name).read_bytes()
    place = draw.choice([len(content), draw.randrange(len(content))])
    (path / name).write_bytes(content[:place] + draw.randbytes(draw.randrange(1, 600)) + content[place:])
    return name


def shifted(path: Path, _: Path, draw: Draw) -> str:
    """A byte lost, another one added at the end: the size is right."""
    name = draw.choice(FILES[:3])
    content = (path / name).read_bytes()
    place = draw.randrange(len(content) // 2)
    (path / name).write_bytes(content[:place] + content[place + 1 :] + b"\x5a")
    return name


def link(path: Path, before: Path, draw: Draw) -> str:
    """In place of a file: to its content elsewhere, to nothing, to itself, to the older one."""
    name = draw.choice(FILES)
    target = draw.choice([path.parents[1] / "elsewhere", path / "nothing", path / name, before / name])
    if target.name == "elsewhere":
        shutil.copy(path / name, path.parents[1] / "elsewhere")
    (path / name).unlink()
    (path / name).symlink_to(target)
    return name


def special(path: Path, _: Path, draw: Draw) -> str:
    """A folder or a pipe in place of a file; nobody writes into the pipe, so who opens it waits."""
    name = draw.choice(FILES)
    (path / name).unlink()
    draw.choice([os.mkdir, os.mkfifo])(path / name)
    return name


def manifest(path: Path, _: Path, draw: Draw) -> str:
    """One value of the manifest, as somebody would edit it."""
    file = path / "MANIFEST.json"
    content: Any = json.loads(file.read_text())
    name, other = draw.sample(sorted(content["files"]), 2)
    entry = content["files"][name]
    match draw.randrange(12):
        case 0:
            entry["bytes"] += draw.choice([-1, 1, 4096])
        case 1:
            place = draw.randrange(64)
            new = draw.choice([c for c in "0123456789abcdef" if c != entry["sha256"][place]])
            entry["sha256"] = entry["sha256"][:place] + new + entry["sha256"][place + 1 :]
        case 2:
            content["format"] = draw.choice(["glocal.checkpoint/2", "", None, 1])
        case 3:
            del content["files"][name]
        case 4:
            content["files"]["other.safetensors"] = content["files"].pop(name)
        case 5:
            content["files"][draw.choice(["../x", "/etc/passwd", "", "more.json"])] = entry
        case 6:
            content["files"][name] = draw.choice([None, [], "x", 3])
        case 7:  # json writes Infinity, and reads it
            entry["bytes"] = draw.choice([float("inf"), float("nan"), "x", None, -1, 10**30])
        case 8:
            content["files"] = draw.choice([[], None, {}, "x"])
        case 9:  # the size fits, the digest cannot
            os.truncate(path / name, entry["bytes"] // 2)
            entry["bytes"] //= 2
        case 10:
            content["files"][name], content["files"][other] = content["files"][other], entry
        case 11:
            del content[draw.choice(["format", "files"])]
    file.write_text(json.dumps(content, indent=1))
    return "MANIFEST.json"


def folder(path: Path, before: Path, draw: Draw) -> str:
    """The whole of it: empty, a file, a link, a copy of the one before."""
    kind = draw.randrange(6)
    if kind == 0:
        shutil.rmtree(path)
        path.mkdir()
    elif kind == 1:
        shutil.rmtree(path)
        path.write_text("not a folder")
    elif kind == 2:
        shutil.rmtree(path)
        path.symlink_to(before.name if draw.random() < 0.5 else "nothing")
    elif kind == 3:
        shutil.rmtree(path)
        shutil.copytree(before, path)
    elif kind == 4:
        for name in FILES[: draw.randrange(1, 6)]:
            (path / name).unlink()
    else:
        for name in FILES:
            os.truncate(path / name, 0)
    return ""


def forbidden(path: Path, _: Path, draw: Draw) -> str:
    """Its permission; of no effect for root."""
    name = draw.choice(FILES)
    (path / name).chmod(0)
    return name


KINDS: tuple[Damage, ...] = (
    flip, flip, flip, flip_in_manifest, truncate, truncate, empty, delete, extra, swap, old, garbage, garbage, zeros,
    longer, shifted, link, special, manifest, manifest, manifest, folder, folder,
    *((forbidden,) if os.geteuid() else ()),
)  # fmt: skip
"""Those that come in many forms more than once."""


def killed_run(out: Path) -> None:
    """A run that was killed and has two checkpoints."""

    def job() -> None:
        from glocal.training.trainer import Trainer

        report = Trainer._report
        Trainer._report = lambda run: die() if run.state.step == KILLED_AT else report(run)  # type: ignore[method-assign]
        forked.train(out)

    assert forked.run(job, out.with_name("killed.log")) < 0
    assert {BEFORE, NEWEST} <= {path.name for path in (out / "checkpoints").iterdir()}


def falls_back(out: Path, killed: Path, whole: Path, damage: Damage, seed: str) -> list[str]:
    """Damage a copy of a killed run and resume it: what is wrong."""
    shutil.copytree(killed, out)
    path, before = out / "checkpoints" / NEWEST, out / "checkpoints" / BEFORE
    bad = damage(path, before, random.Random(seed))
    log = out.with_name(f"{out.name}.log")
    code = forked.run(lambda: forked.train(out), log, limit=60)
    (out / "elsewhere").unlink(missing_ok=True)
    said = log.read_text(errors="replace")
    faults = [] if code == 0 else [f"did not resume ({code}): {said[-400:]}"]
    told = [line for line in said.splitlines() if "falling back to the previous checkpoint" in line]
    if not any(is_named(path, bad, line) for line in told):
        faults.append(f"{bad or 'the checkpoint'} is not named: {told}")
    if f"Resuming from step {int(BEFORE[5:])}." not in said:
        faults.append("did not go on from the checkpoint before")
    faults += forked.differs(out, whole)
    shutil.rmtree(out)
    return faults


def is_named(path: Path, bad: str, line: str) -> bool:
    """Whether a line names a bad file; of a manifest and a file that do not fit each other it must name both."""
    return str(path / bad) in line or (bad == "MANIFEST.json" and str(path) in line and bad in line)


def main(num_cases: int = 200) -> None:
    """All of it, into docs/results/reliability.md."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole, killed = place / "whole", place / "killed"
        assert forked.run(lambda: forked.train(whole), place / "log") == 0
        killed_run(killed)
        cases = [(f"{KINDS[i % len(KINDS)].__name__} {SEED} {i}", KINDS[i % len(KINDS)]) for i in range(num_cases)]
        found = forked.side_by_side(
            lambda case: falls_back(place / case[0].replace(" ", "-"), killed, whole, case[1], case[0]),
            cases,
            place / "found",
        )
    bad = {case[0]: faults for case, faults in zip(cases, found, strict=True) if faults}
    kinds = len({kind.__name__ for kind in KINDS})
    record(
        "damage",
        what=f"latest checkpoint damaged ({num_cases} cases of {kinds} kinds: bits, lengths, links, folders, manifest) "
        "and the run resumed: names the damaged file, falls back to the previous checkpoint, final weights "
        "bit-identical to an uninterrupted run",
        asked=f"{num_cases} of {num_cases}",
        found=f"{num_cases - len(bad)} of {num_cases}",
        holds=not bad,
        seed=SEED,
        seconds=time.monotonic() - start,
        faults=bad,
        **({} if os.geteuid() else {"note": "run as root, so missing permissions have no effect and are not tested."}),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
