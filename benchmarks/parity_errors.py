"""How far each parity fixture is from its authors' code: the tables in docs/{t2t_vit,cvt,cat,conformer}.md.

    PYTHONPATH=. python benchmarks/parity_errors.py [part of a fixture's name]

Prints for each fixture the largest error over its outputs, as a part of the largest value, in float64 and float32.
"""

import sys

import torch
from tests.parity import recipe
from tests.parity.test_parity import DENSE, FIXTURES, TWO_HEADS, build, load


def errors(fixture: str) -> dict[torch.dtype, float]:
    """The largest relative error of a fixture in each precision."""
    manifest, arrays = load(fixture)
    outputs = {output["name"]: output for output in manifest["outputs"]}
    worst = {torch.float64: 0.0, torch.float32: 0.0}
    for call in manifest["calls"]:
        model = build(fixture, manifest, **call["constructor_override"])
        x = torch.from_numpy(recipe.image(manifest["inputs"][call["input"]]))
        for dtype in worst:
            with torch.no_grad():
                run = model.to(dtype)
                got = run.forward_branches(x.to(dtype)) if fixture in TWO_HEADS else run(x.to(dtype))
            for name, value in zip(call["outputs"], got if isinstance(got, list | tuple) else (got,), strict=True):
                output, flat = outputs[name], value.double().numpy().ravel()
                flat = flat if output["stored"] == "all" else flat[output["indices"]]
                error = abs(flat - arrays[name].ravel()).max() / output["max_abs"]
                worst[dtype] = max(worst[dtype], float(error))
    return worst


if __name__ == "__main__":
    for fixture in (*FIXTURES, *TWO_HEADS, *DENSE):
        if not sys.argv[1:] or sys.argv[1] in fixture:
            worst = errors(fixture)
            print(f"{fixture:36} {worst[torch.float64]:.1e} {worst[torch.float32]:.1e}", flush=True)
