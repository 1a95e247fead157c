r"""Benchmarks: see `python -m benchmarks --help`; bench_*.py run under pytest-benchmark."""
