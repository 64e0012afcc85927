"""How identity tokens enter a denoiser: the attention mathematics once, the list of sites once, two thin bindings."""
