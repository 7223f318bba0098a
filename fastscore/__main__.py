"""`python -m fastscore` is the command `fastscore`."""

from fastscore.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
