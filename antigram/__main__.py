"""``python -m antigram``: the command line."""

from antigram.cli import main

if __name__ == "__main__":
    main()
