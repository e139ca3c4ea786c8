"""What a corpus is given as: folder, list, manifest, tars or cuts; read as a stream of items."""
