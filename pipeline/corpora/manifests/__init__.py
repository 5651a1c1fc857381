"""The formats of manifests that `corpora.manifest` reads, a module for each."""
