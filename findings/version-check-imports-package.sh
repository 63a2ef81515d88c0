#!/usr/bin/env bash
# lightning-utilities 0.15.3: `compare_version("package", operator.ge, "1.0")` imports the package to learn its version;
# `RequirementCache("package>=1.0")` reads the installed metadata and imports nothing. lightning-fabric 2.6.6 asks with
# the first of the two, at import, whether torchmetrics is 1.0 or newer: where torchmetrics 1.9.0 and transformers 5.24.0
# are installed, `import lightning_fabric` imports both: 6.0 s of processor time instead of 3.5 (AMD EPYC).
# So `glocal train` starts later in such an environment; glocal imports Fabric in the trainer alone.
#
# Seen:
#   0.15.3 RequirementCache True imported: False
#   0.15.3 compare_version True imported: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/expected" <<'OUT'
0.15.3 RequirementCache True imported: False
0.15.3 compare_version True imported: True
OUT
python3 -m pip --disable-pip-version-check install --quiet --target "$work/site" \
  lightning-utilities==0.15.3 packaging==25.0 typing-extensions==4.15.0 tabulate==0.9.0 setuptools==80.9.0 2> "$work/pip" ||
  { cat "$work/pip"; exit 1; }
cat > "$work/try.py" <<'PY'
import operator
import sys
from importlib.metadata import version

from lightning_utilities.core.imports import RequirementCache, compare_version

version = version("lightning-utilities")
print(version, "RequirementCache", bool(RequirementCache("tabulate>=0.9")), "imported:", "tabulate" in sys.modules)
print(version, "compare_version", compare_version("tabulate", operator.ge, "0.9"), "imported:", "tabulate" in sys.modules)
PY
PYTHONPATH="$work/site" python3 "$work/try.py" > "$work/got"
diff "$work/expected" "$work/got" && cat "$work/got"
