"""Training, evaluation and prediction: settings, batches, steps, checkpoints and scores."""

__all__: list[str] = []
