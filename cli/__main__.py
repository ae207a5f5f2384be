"""Run the command line with `python -m cli`."""

from cli.main import main

main()
