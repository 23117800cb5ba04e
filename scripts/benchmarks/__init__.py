"""The suites of scripts/benchmark.py, one module each: `rows(settings)` prints a table and yields its rows."""
