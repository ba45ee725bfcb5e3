"""Networks to masks. Whole images of any size, with or without averaging over mirrored and turned
copies.
"""
