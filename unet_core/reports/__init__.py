"""Histories, scores and masks as CSV, tables and pictures."""
