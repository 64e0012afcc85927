"""The model that a training starts from: its parts, where they come from, and what is put into them."""
