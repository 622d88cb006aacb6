"""`python -m repshift_cli` is `repshift`."""

from repshift_cli.cli import main

if __name__ == "__main__":  # processes that decode images import it again
    main()
