#!/usr/bin/env bash
# safetensors 0.8.0 (numpy 2.3.5): `safetensors.numpy.save_file` of a Fortran-ordered array writes its bytes as they lie
# in memory under the shape of the array, so the file holds other values, without an error. 0.7.0 wrote the right ones.
# scikit-learn's PCA and `array.T` give such arrays. glocal makes every array C-contiguous before it writes one
# (src/glocal/comparison/metric.py). Known upstream: https://github.com/safetensors/safetensors/issues/825
#
# Seen:
#   0.7.0 equal [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
#   0.8.0 differs [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
#   0.8.0 of np.ascontiguousarray equal [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/expected" <<'OUT'
0.7.0 equal [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
0.8.0 differs [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
0.8.0 of np.ascontiguousarray equal [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
OUT
cat > "$work/try.py" <<'PY'
import sys
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

def try_once(array, note, path=sys.argv[1]):
    save_file({"x": array}, path)
    loaded = load_file(path)["x"]
    print(safetensors.__version__ + note, "equal" if np.array_equal(array, loaded) else "differs", loaded.tolist())

array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
try_once(array, "")
if safetensors.__version__ == "0.8.0":
    try_once(np.ascontiguousarray(array), " of np.ascontiguousarray")
PY
for version in 0.7.0 0.8.0; do
  python3 -m pip --disable-pip-version-check install --quiet --target "$work/$version" "safetensors==$version" numpy==2.3.5 2> "$work/pip" || { cat "$work/pip"; exit 1; }
  PYTHONPATH="$work/$version" python3 "$work/try.py" "$work/x.safetensors" >> "$work/got"
done
diff "$work/expected" "$work/got" && cat "$work/got"
