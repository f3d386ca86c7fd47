"""The chip as Amaranth and Verilog."""
