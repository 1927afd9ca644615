"""From folders to samples: which images there are, whose they are, and what is wrong with them."""
