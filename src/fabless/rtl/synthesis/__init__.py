"""From a block to cells of a library: area, clock from static timing, energy from simulated switching."""
