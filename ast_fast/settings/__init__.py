"""Every setting of a run: what there is, how it is given and kept, its rules, whether two agree."""
