"""From audio files to shards of features, at the size of a corpus."""
