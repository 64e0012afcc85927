"""Tuning-free systems: their networks, their official weight layouts, and how an identity becomes tokens."""
