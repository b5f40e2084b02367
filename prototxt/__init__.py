"""The published networks: a builder (``build.py``), and beside it the definitions that it writes."""
