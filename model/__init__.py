"""The code that runs on the GPU: networks, losses and training.

`nets` holds the networks, `loss` compares student and teacher, and `training` trains, evaluates and
predicts. This package imports `pipeline`, never `cache`.
"""

__all__: list[str] = []
