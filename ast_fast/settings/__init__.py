"""Every setting of a run: definition, command line, TOML, rules, and whether two runs agree."""
