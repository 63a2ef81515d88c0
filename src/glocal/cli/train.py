"""`glocal train`: train one model, and resume it after any stop."""

import glocal.cli._options as opt
from glocal.cli import app
from glocal.cli._training import run_training

EPILOG = f"""\
\b
Examples:
  glocal train fashion-mini --model resnet_micro
  glocal train photos --model cvt_13 --weights cvt_13.safetensors -s epochs=20 --out run
  glocal train photos --model vit_base_patch16_224 --weights pretrained --recipe probe
  glocal train imagenet --model t2t_vit_14 --recipe t2t_vit --devices 8 --precision bf16 --out run --resume
  torchrun --nproc-per-node 8 --nnodes 4 ... -m glocal train 'shards/train-{{000000..001281}}.tar' --model ...

\b
Recipes: a name (docs/recipes.md), or a YAML file of the settings that differ.

{opt.TRAIN_CODES}"""


@app.command(epilog=EPILOG)
def train(
    data: opt.Data,
    model: opt.Model,
    recipe: opt.Recipe = None,
    settings: opt.RecipeSettings = None,
    weights: opt.Weights = None,
    freeze: opt.Freeze = None,
    out: opt.RunFolder = None,
    resume: opt.Resume = False,
    allow_changed: opt.AllowChanged = False,
    device: opt.Device = "auto",
    devices: opt.Devices = 1,
    num_nodes: opt.NumNodes = 1,
    strategy: opt.Strategy = "ddp",
    precision: opt.Precision = "32",
    seed: opt.Seed = 0,
    workers: opt.Workers = None,
    on_error: opt.OnError = "stop",
    follow_links: opt.FollowLinks = False,
    split_seed: opt.SplitSeed = 0,
    tensorboard: opt.TensorBoard = False,
) -> None:
    """Train a model on your images. Stop at any time: --resume continues, bit-identical to an uninterrupted run.

    Writes model.safetensors, results.json, metrics.csv, recipe.yaml and checkpoints into the run's folder.
    """
    run_training("classification", locals())
