"""Objectives: pure functions of tensors, one idea per file, in the symbols of the paper it comes from.

All of them return one value per sample, (batch,), unless they say otherwise: means over a batch are taken by the
caller, so that a batch of n gives the mean of n batches of one, whatever it holds.
"""
