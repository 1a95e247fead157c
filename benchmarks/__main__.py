r"""`python -m benchmarks linear`: ratios of medians in Markdown; `calibrate`: the constants of the cost model."""

from __future__ import annotations

import argparse

from benchmarks import calibrate, linear


def main() -> None:
    r"""Print the report of one subject, line by line as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subject", choices=["linear", "calibrate"])
    parser.add_argument("--seconds", type=float, default=2.0, help="per case (default: 2)")
    args = parser.parse_args()
    lines = linear.report(args.seconds) if args.subject == "linear" else calibrate.constants(args.seconds)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
