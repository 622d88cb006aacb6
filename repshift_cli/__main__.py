"""`python -m repshift_cli` is `repshift`."""

from repshift_cli.cli import main

main()
