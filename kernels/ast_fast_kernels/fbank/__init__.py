"""Log-mel filterbanks: `api` is the door, `config` and `tables` the constants; the rest run it."""
