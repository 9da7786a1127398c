"""Code shared by all experiments: training loop, run directories, checkpoints, metrics, CLI."""
