"""The networks, the weights that come with the pack, and portraits made with them, without a host and in ComfyUI."""
