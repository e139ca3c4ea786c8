"""What follows a projection in a stage of a convolution stem, in one pass: `api` is the door."""
