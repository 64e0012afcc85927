"""Restoration: face restorers, super-resolution, and pasting faces back so that nobody sees it.

Whatever the network, a face goes the same way: detect, align to the FFHQ crop, restore, check that the person is still
there, paste back. All in float32 RGB 0..1; pixels are rounded only where an image is saved.
"""
