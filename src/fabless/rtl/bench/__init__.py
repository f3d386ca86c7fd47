"""The tile in Verilator: build once, then run programs and compare."""
