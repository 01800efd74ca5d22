"""`python -m vit_cli` is the `vit` command."""

from vit_cli.main import main

if __name__ == "__main__":
    main()
