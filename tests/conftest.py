"""What every test process needs before NumPy is loaded."""

import os

# The suite already uses every core (pytest-xdist): a BLAS that adds its own threads makes them spin for each other, ten times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
