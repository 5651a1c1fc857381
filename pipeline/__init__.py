"""From audio to feature stores. No torch.

`corpora` list recordings, `audio` decodes and transforms them, `features` makes stores of them,
`storage` keeps arrays on disk, `download` fetches corpora, `execution` runs work in processes.
"""

__all__: list[str] = []
