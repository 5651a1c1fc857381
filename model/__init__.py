"""What runs on the GPU; imports `pipeline`, never `cache`.

`nets` are the networks, `loss` compares student and teacher, `training` trains, scores and
predicts.
"""

__all__: list[str] = []
