"""The command line: `tartan`."""


def main() -> None:
    """Run the command line."""
