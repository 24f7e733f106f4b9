"""The settings: declared, read from their layers, validated, explained and rendered."""
