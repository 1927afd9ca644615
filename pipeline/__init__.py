"""From images to frozen features to heads: the stages behind the command `headrace`."""
