"""From images to rows in the store, once: engines, the extraction, and rows joined to samples."""
