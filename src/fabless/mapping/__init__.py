"""Which tiles and which chips do which part of an op: shared by compiler and roofline."""
