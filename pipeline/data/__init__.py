"""From folders to samples: images, their patients, classes and splits, and leaks among them."""
