"""Residual addition and layer normalisation in one pass: `api` has the public function."""
