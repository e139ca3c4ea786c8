"""From a folder in ESC-50's layout to a data set: clips decoded once, with labels and folds."""
