"""`python -m fabless` is the `fabless` command."""

from fabless.cli import main

main()
