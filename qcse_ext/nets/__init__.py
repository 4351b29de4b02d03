"""The networks of a training step: fully connected layers, critics and their losses, samples of a policy."""
