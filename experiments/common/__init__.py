"""What all experiments share: the training loop, run directories, checkpoints, metrics, CLI."""
