"""Rotated, scaled and summed clips in one pass: `api` has the public function."""
