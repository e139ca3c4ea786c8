"""A projection's bias and GELU in one pass: `api` has the public function."""
