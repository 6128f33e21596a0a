"""``python -m batch_explain``."""

from batch_explain.cli import main

if __name__ == "__main__":
    main()
