"""Detections against ground truth: average precision, curves, confusion, and their figures."""
