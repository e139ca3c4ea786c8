"""Normalised, masked and padded features in one pass: `api` has the public function."""
