"""Evaluation: is it the person, does it obey the prompt, is it a copy? Pure functions of images and records.

Networks are passed in: a judge is any `FaceAnalysis` with a recogniser, encoders are callables. Importing this room
loads torch and numpy only.
"""
