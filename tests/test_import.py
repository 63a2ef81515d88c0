"""What ``import glocal`` and ``glocal --help`` do, and above all what they do not. Each test is a fresh process."""

import resource
import subprocess
import sys

import pytest

# A connection or a name look-up becomes an error, so that nothing can be fetched unseen.
OFFLINE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(refuse)
"""


def python(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def least_seconds(*codes: str, rounds: int) -> list[float]:
    """Least processor time of each program, run in turn.

    Imports compute on one thread, so on an idle machine these are seconds by the clock; on a shared one the clock would
    measure the neighbours.
    """
    times: list[list[float]] = [[] for _ in codes]
    for _ in range(rounds):
        for code, of_code in zip(codes, times, strict=True):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            python(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            of_code.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return [min(of_code) for of_code in times]


def test_import_is_silent_offline_and_without_torch():
    code = "import glocal; print(*{'torch', 'timm', 'torchvision', 'numpy', 'rich', 'typer'} & set(sys.modules))"
    assert python(OFFLINE + code, "-W", "error").strip() == ""


@pytest.mark.parametrize("order", ["import glocal, timm", "import timm, glocal", "import timm.models, glocal"])
def test_timm_knows_our_models_whichever_came_first(order):
    code = f"{order}\nprint(*timm.list_models('botnet*'), timm.is_model('glocal_resnet50'))"
    names = python(f"{OFFLINE}{code}", "-W", "error").split()
    assert {"botnet26t_256", "botnet50", "botnet_s1_59", "botnet_micro", "True"} <= set(names)


def test_a_model_is_made_through_timm():
    code = "import glocal, timm; print(timm.create_model('botnet_micro', num_classes=7).get_classifier().out_features)"
    assert python(OFFLINE + code, "-W", "error").strip() == "7"


def test_public_names_come_at_their_first_use():
    code = """
import glocal
assert "torch" not in sys.modules
print(glocal.__version__, *glocal.list_models("vit_micro"), glocal.create_model("vit_micro").num_classes)
assert {"create_model", "list_models", "convert_checkpoint", "__version__"} <= set(dir(glocal))
try:
    glocal.no_such_name
except AttributeError as error:
    print(error)
"""
    assert python(OFFLINE + code, "-W", "error").splitlines() == [
        "0.1.0 vit_micro 1000",
        "module 'glocal' has no attribute 'no_such_name'",
    ]


def test_every_submodule_comes_at_its_first_use():
    """Each in a process of its own would take minutes: what one of them imports is a submodule by that alone."""
    code = """
import pkgutil, glocal
names = {module.name for module in pkgutil.iter_modules(glocal.__path__) if not module.name.startswith("_")}
assert {"tasks", "metrics", "analysis", "claims", "recommend", "run_dir"} <= names <= set(dir(glocal))
assert not names & set(vars(glocal)) - {"version"}
print(*(name for name in sorted(names) if getattr(glocal, name).__name__ != f"glocal.{name}"))
"""
    assert python(OFFLINE + code, "-W", "error").strip() == ""


def test_no_name_of_timm_is_taken():
    code = """
import timm
before = {name: timm.models.model_entrypoint(name) for name in timm.list_models()}
configurations = {name: timm.get_pretrained_cfg(name) for name in before}
import glocal
ours = set(glocal.list_models())
assert ours and not ours & set(before), ours & set(before)
assert ours == set(timm.list_models()) - set(before)
assert all(timm.models.model_entrypoint(name) is function for name, function in before.items())
assert all(timm.get_pretrained_cfg(name) == cfg for name, cfg in configurations.items())
"""
    python(code, "-W", "error")


HELP = "import sys; sys.argv = ['glocal', '--help']\nfrom glocal.cli import main\n"


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = HELP + "try:\n    main()\nexcept SystemExit:\n    print(*sys.modules)"
    *text, modules = python(OFFLINE + code, "-W", "error").splitlines()
    assert not {"torch", "timm", "torchvision", "numpy", "PIL", "pytorch_lightning"} & set(modules.split())
    for command in ("compare", "check", "models"):
        assert any(line.strip("│ ").startswith(command) for line in text)


@pytest.mark.slow  # a shared machine has moments that no test can know of
def test_help_is_as_quick_as_its_libraries():
    ours, libraries = least_seconds(HELP + "main()", "import typer, rich", rounds=7)
    assert ours <= 3 * libraries, f"glocal --help {ours:.2f} s, typer and rich {libraries:.2f} s"


@pytest.mark.slow  # a shared machine has moments that no test can know of
def test_import_costs_little_more_than_timm_and_torchvision():
    ours, theirs = least_seconds("import glocal, timm, torchvision", "import timm, torchvision", rounds=3)
    assert ours <= 1.15 * theirs, f"with glocal {ours:.2f} s, without {theirs:.2f} s"


def test_asking_whether_timm_is_there_does_not_lose_our_models():
    """Lightning and transformers look for timm without importing it."""
    asked = "import glocal, importlib.util; assert importlib.util.find_spec('timm'); "
    assert python(asked + "import timm; print(timm.is_model('cvt_13'))") == "True\n"
