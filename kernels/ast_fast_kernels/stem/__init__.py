"""What follows a convolution stem's projection, in one pass: `api` has the public function."""
