"""Mask Fine-Tuning."""
