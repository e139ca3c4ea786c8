"""ESC-50's layout on the disk, and the clips that it becomes: decoded once, labelled, in folds."""
