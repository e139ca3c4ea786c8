"""Scaled dot-product attention: `api` has the public function, the rest are backends."""
