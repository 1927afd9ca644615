"""From images to features in the store: backbones, engines, extraction, and loading."""
