"""Networks and their layers. Knows nothing of data or steps."""
