"""``python -m qtool``."""

from qtool.cli.main import main

if __name__ == "__main__":
    main()
