"""Predictions as files and videos."""
