"""Readers of the sets' layouts."""
