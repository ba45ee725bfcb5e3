"""One file for each mode of `train_loop.py`; the only code that sees all settings."""
