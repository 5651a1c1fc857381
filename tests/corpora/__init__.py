"""One file a corpus: what its adapter must get right."""
