"""Faces: detection, alignment, parsing, recognition, and the `Identity` they add up to."""
