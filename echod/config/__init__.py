"""The settings: declared, read from their layers, checked, explained and written out."""
