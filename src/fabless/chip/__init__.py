"""The description of a chip and the catalogue of real ones."""
