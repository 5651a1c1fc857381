"""What tests make: recordings, corpora, stores, networks, runs, servers, shells."""
