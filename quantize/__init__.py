"""Pruning, calibration, post-training quantization and the audit of what came out."""
