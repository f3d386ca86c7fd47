"""The instruction set: one table, programs, assembler, legality, timing."""
