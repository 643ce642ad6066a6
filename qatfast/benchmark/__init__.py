"""Measures qatfast against other ways to compute the same: `python -m qatfast bench`, and the suites in benchmarks/."""
