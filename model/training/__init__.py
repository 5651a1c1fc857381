"""Settings, batches, the step, the loop, checkpoints, scores and predictions."""

__all__: list[str] = []
