"""The preprocessing stage: turn corpora of audio files into feature stores. No torch.

`corpora` lists recordings, `audio` decodes and transforms them, `features` prepares stores from
them, `storage` keeps arrays on disk, `download` fetches corpora, `execution` runs tasks in worker
processes.
"""

__all__: list[str] = []
