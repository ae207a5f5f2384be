"""Command line: the commands of `tartan`, one sub-package for each heading of `tartan --help`."""
