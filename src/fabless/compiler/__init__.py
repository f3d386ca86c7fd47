"""Graph and chip in, program out."""
