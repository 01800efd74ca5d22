"""`python -m vit_core` is `vit`: what torchrun starts."""

from vit_core.cli import main

main()
