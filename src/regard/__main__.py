"""`python -m regard`, for torchrun."""

from regard.cli import main

main()
