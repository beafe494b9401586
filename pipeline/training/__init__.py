"""The training loop and what it stands on: optimizers, schedules, checkpoints, validation, several processes."""
