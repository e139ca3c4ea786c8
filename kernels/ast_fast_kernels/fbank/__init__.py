"""Log-mel filterbanks: `api` has the function, `config` and `tables` its constants."""
