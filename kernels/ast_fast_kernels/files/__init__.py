"""Files that exist whole or not at all, documents with checksums, text from outside."""
