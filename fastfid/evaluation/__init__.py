"""Evaluation of image sets: sides, scores with intervals, results and reports."""
