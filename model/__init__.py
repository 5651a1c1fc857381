"""What runs on the GPU: VGGs, Gram matrices, the anti-transfer loss, the trainer.

Imports `pipeline`, never `cache`: the trainer asks for a `GramSource` and is given one.
"""

__all__: list[str] = []
