"""Plant one mistake at a time into a copy of the source and see which tests notice: writes docs/results/planted.md.

    python benchmarks/planted_mistakes.py            all, about five minutes on two cores
    python benchmarks/planted_mistakes.py cvt        those whose name contains "cvt", without writing the table

Each is a slip that somebody has made, in a re-implementation or in review. One that no test notices ends the script
with exit code 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARITY = "tests/parity/test_parity.py"
# What, where, the line as it is, the line as it would be, the tests that should notice.
MISTAKES = (
    ("cvt: scale of a head, not of the width", "layers/attention.py",
     "Attend(scale=dim**-0.5, dropout=dropout)", "Attend(dropout=dropout)", f"{PARITY} -k cvt-13"),
    ("cvt: exact GELU for QuickGELU", "models/cvt.py",
     ", act_layer=QuickGELU", "", f"{PARITY} -k cvt-13"),
    ("cvt: LayerNorm epsilon 1e-6", "models/cvt.py",
     "self.norm1 = nn.LayerNorm(dim)", "self.norm1 = nn.LayerNorm(dim, eps=1e-6)", f"{PARITY} -k cvt-13"),
    ("cvt: BatchNorm epsilon 1e-6", "layers/attention.py",
     'self.add_module("bn", nn.BatchNorm2d(dim))', 'self.add_module("bn", nn.BatchNorm2d(dim, eps=1e-6))',
     f"{PARITY} -k cvt-13"),
    ("cvt: keys and values at stride 1", "layers/attention.py",
     "self.conv_proj_k = PROJECTIONS[projection](dim, kv_stride)", "self.conv_proj_k = PROJECTIONS[projection](dim, 1)",
     f"{PARITY} -k cvt-13"),
    ("t2t: Performer projection as q, k, v", "layers/tokens_to_token.py",
     "k, q, v = self.kqv", "q, k, v = self.kqv", f"{PARITY} -k t2t_vit_7"),
    ("t2t: Performer without the skip from v", "layers/tokens_to_token.py",
     "x = v + self.dropout(", "x = self.dropout(", f"{PARITY} -k t2t_vit_7"),
    ("t2t: Performer constant 1e-12", "layers/performer.py",
     "EPSILON = 1e-8", "EPSILON = 1e-12", f"{PARITY} -k t2t_vit_7"),
    ("t2t: token transformer scaled by its head", "layers/tokens_to_token.py",
     "Attend(scale=in_dim**-0.5)", "Attend()", f"{PARITY} -k t2t_vit_t_14"),
    ("t2t: sines in one half, cosines in the other", "layers/position.py",
     "torch.where(channel % 2 == 0", "torch.where(channel < dim // 2", "tests/layers/test_conv_attention.py"),
    ("t2t: no position for the class token", "models/t2t_vit.py",
     "x = x + resample_abs_pos_embed(", "x[:, 1:] = x[:, 1:] + resample_abs_pos_embed(", f"{PARITY} -k t2t_vit_7"),
    ("t2t: LayerNorm epsilon 1e-6", "models/_t2t_blocks.py",
     "self.norm1 = nn.LayerNorm(dim)", "self.norm1 = nn.LayerNorm(dim, eps=1e-6)", f"{PARITY} -k t2t_vit_7"),
    ("t2t: tanh form of GELU", "layers/tokens_to_token.py",
     '"act": nn.GELU()', '"act": nn.GELU("tanh")', f"{PARITY} -k t2t_vit_7"),
    ("t2t: ghost copies before the activation", "models/_t2t_blocks.py",
     "x = self.act(self.fc1(x))", "x = self.fc1(x)", f"{PARITY} -k ghost"),
    ("conformer: BatchNorm epsilon 1e-5 in blocks", "models/_conformer_blocks.py",
     "self.bn2 = nn.BatchNorm2d(width, eps=1e-6)", "self.bn2 = nn.BatchNorm2d(width)", f"{PARITY} -k tiny_patch16"),
    ("conformer: LayerNorm epsilon 1e-5 in blocks", "models/_conformer_blocks.py",
     "self.norm1 = nn.LayerNorm(dim, eps=1e-6)", "self.norm1 = nn.LayerNorm(dim)", f"{PARITY} -k tiny_patch16"),
    ("conformer: class token not doubled", "layers/coupling.py",
     "torch.cat((tokens[:, :1], ", "torch.cat((torch.zeros_like(tokens[:, :1]), ", f"{PARITY} -k tiny_patch16"),
    ("conformer: no GELU on the way down", "layers/coupling.py",
     "self.act(self.ln(x))", "self.ln(x)", f"{PARITY} -k tiny_patch16"),
    ("conformer: maximum pooling", "models/conformer.py",
     'pooling: str = "avg"', 'pooling: str = "max"', f"{PARITY} -k tiny_patch16"),
    ("conformer: bilinear up-sampling", "models/conformer.py",
     'upsampling: str = "nearest"', 'upsampling: str = "bilinear"', f"{PARITY} -k tiny_patch16"),
    ("conformer: tap before the 3x3 convolution", "models/_conformer_blocks.py",
     "        y = self.act(self.bn2(self.conv2(y)))  # (B, out_chs / 4, H / s, W / s)\n"
     "        out = self.bn3(self.conv3(y))",
     "        out = self.bn3(self.conv3(self.act(self.bn2(self.conv2(y)))))", f"{PARITY} -k tiny_patch16"),
    ("cat: relative bias, columns first", "layers/window.py",
     "rows * (2 * side - 1) + columns", "columns * (2 * side - 1) + rows", f"{PARITY} -k cat_tiny"),
    ("cat: 2x2 merge row by row", "models/cat.py",
     "return x.transpose(3, 4).flatten(3)", "return x.flatten(3)", f"{PARITY} -k cat_tiny"),
    ("cat: unscaled attention between windows", "layers/window.py",
     "self.qkv = Linear(side**2, 3 * side**2, bias=qkv_bias)\n        self.attend = Attend(dropout=dropout)",
     "self.qkv = Linear(side**2, 3 * side**2, bias=qkv_bias)\n        self.attend = Attend(scale=1.0)",
     f"{PARITY} -k cat_tiny"),
    ("cat: bilinear resampling of positions", "layers/position.py",
     'mode="bicubic", align_corners=False', 'mode="bilinear", align_corners=False', f"{PARITY} -k cat_small_dense"),
    ("cat: antialias in resampling of positions", "layers/position.py",
     'mode="bicubic", align_corners=False', 'mode="bicubic", align_corners=False, antialias=True',
     f"{PARITY} -k cat_small_dense"),
    ("cat: padding at the top and left", "layers/window.py",
     "F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))",
     "F.pad(x, (0, 0, columns * side - width, 0, rows * side - height, 0))", f"{PARITY} -k cat_small_dense"),
    ("botnet: position logits from unscaled queries", "layers/attention.py",
     "self.position(band, height", "self.position(band * self.head_dim**0.5, height",
     "tests/layers/test_attention.py"),
    ("botnet: relative rows as query minus key", "layers/position.py",
     "position[None, :] - position[:, None] + length - 1", "position[:, None] - position[None, :] + length - 1",
     "tests/layers/test_position.py"),
    ("vit: LayerNorm epsilon 1e-5", "models/vit.py",
     "self.norm1 = nn.LayerNorm(dim, eps=1e-6)", "self.norm1 = nn.LayerNorm(dim, eps=1e-5)",
     "tests/models/test_vit.py -k moved_over"),
)  # fmt: skip


def plant(where: str, line: str, mistake: str, tests: str) -> tuple[int, str]:
    """Failures of the tests with the mistake, and the first of them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "glocal"
        shutil.copytree(ROOT / "src/glocal", source)
        file = source / where
        text = file.read_text(encoding="utf-8")
        if text.count(line) < 1:
            sys.exit(f"{where}: no line {line!r} any more; mend the list")
        file.write_text(text.replace(line, mistake), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", *tests.split()]
        environment = {**os.environ, "PYTHONPATH": folder}
        output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    failed = [line.split()[1].split("::")[1] for line in output.splitlines() if line.startswith("FAILED ")]
    if not failed and " passed" not in output:
        sys.exit(f"the tests did not run: {output[-2000:]}")
    return len(failed), failed[0] if failed else "nothing"


def main() -> None:
    """Plant them all, print and write the table."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    rows, unnoticed = [], 0
    for what, where, line, mistake, tests in MISTAKES:
        if wanted in what:
            count, first = plant(where, line, mistake, tests)
            unnoticed += not count
            rows.append(f"| {what} | `{where}` | {count} | `{first}` |")
            print(rows[-1], flush=True)
    if not wanted:
        head = (
            "# Planted faults\n\nEach fault was planted in the source by itself and the tests of the module were run: "
            f"`python benchmarks/planted_mistakes.py`. {len(rows) - unnoticed} of {len(rows)} were detected.\n\n"
            "| fault | file | failed tests | first failed test |\n| --- | --- | --- | --- |\n"
        )
        target = ROOT / "docs/results/planted.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
