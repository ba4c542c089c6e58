"""`python -m dsv3_plugin.cli`, for torchrun and for tests."""

from dsv3_plugin.cli import main

if __name__ == "__main__":
    main()
