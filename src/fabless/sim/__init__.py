"""Three ways to time a step: roofline, cycles, and the bit-exact machine."""
