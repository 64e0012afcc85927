"""Retrains the miniature's networks from nothing but drawn pictures: `python -m likeness.miniature.train`."""
