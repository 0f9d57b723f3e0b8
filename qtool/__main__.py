"""``python -m qtool``."""

from qtool.cli.main import entry

if __name__ == "__main__":
    entry()
