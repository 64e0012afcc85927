"""Training methods, one per file: which parameters, which phases, which objectives, as the paper has them."""
