"""Arrays to pictures, plots and tables."""
