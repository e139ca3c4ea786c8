"""Features at the size of a corpus: extracted from files into shards, and read back."""
