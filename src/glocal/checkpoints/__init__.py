"""Names and shapes of other people's releases -> ours: pure functions on state dicts, a file a family."""
