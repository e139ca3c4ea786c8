"""A projection by the fastest matrix product that torch has: `api` has the public function."""
