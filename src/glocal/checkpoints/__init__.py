"""Convert the checkpoints of other releases to ours: pure functions on state dicts, one file per family."""
