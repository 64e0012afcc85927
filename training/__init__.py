"""Training: the engine, objectives and recipes; methods are what node and command line know of them."""
