"""Probes measure a training while it runs."""
