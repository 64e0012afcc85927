"""Training engine, objectives and recipes. Empty until the first recipe lands."""
