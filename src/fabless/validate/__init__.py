"""Predictions against measured silicon."""
