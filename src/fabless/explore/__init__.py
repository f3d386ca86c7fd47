"""The search for the chip to build."""
