#!/usr/bin/env python3
"""Runs two builds of a benchmark in turn and compares what they print.

    benches/compare.py OLD NEW [--runs 15]

OLD and NEW are benchmark programs, such as cargo prints them at `cargo bench --bench runner --no-run`. Each run starts
both, in an order that alternates. For each number that both print in the same place, a line of the output has the median
of OLD with its lowest and highest value, the same of NEW, and the ratio of the medians. Do not run anything else on the
machine meanwhile.
"""
import argparse
import re
import statistics
import subprocess
import sys

NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.])")


def numbers(text):
    """The numbers of a benchmark's output by their place: the line they are in, and how many come before them there."""
    found, group = {}, ""
    for line in text.splitlines():
        if line.strip() and not NUMBER.search(line):
            group = line.strip()
        # A server's name may follow a count that belongs to the line, such as the number of connections.
        words = re.match(r"\s*(\d+)\s{2,}\S", line)
        label = f"{words.group(1)} " if words else ""
        label += " ".join(NUMBER.sub("#", line).split())
        for place, number in enumerate(NUMBER.findall(line)):
            key, at = f"{group} | {label} [{place + 1}]", 1
            while key in found:
                at += 1
                key = f"{group} | {label} [{place + 1}] ({at})"
            found[key] = float(number)
    return found


def run(program):
    # Some benchmarks exit with 1 when an aim is missed, which is no failure of the run.
    ended = subprocess.run([program, "--bench"], stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode not in (0, 1) or not numbers(ended.stdout):
        sys.exit(f"compare.py: {program} ended with {ended.returncode} and printed no numbers")
    return numbers(ended.stdout)


def shown(values):
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def compare(old, new, runs):
    """The lines of the comparison."""
    outcomes = {old: [], new: []}
    for number in range(runs):
        for program in (old, new) if number % 2 == 0 else (new, old):
            outcomes[program].append(run(program))
        print(f"run {number + 1} of {runs}", file=sys.stderr)
    for key in outcomes[old][0]:
        before = [outcome[key] for outcome in outcomes[old] if key in outcome]
        after = [outcome[key] for outcome in outcomes[new] if key in outcome]
        if len(before) == len(after) == runs:
            median = statistics.median(before)
            ratio = f"{statistics.median(after) / median:.3f}" if median else "-"
            yield f"{ratio:>7}  {shown(before):>32}  {shown(after):>32}  {key}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--runs", type=int, default=15, help="how often each program runs (default: 15)")
    args = parser.parse_args()
    if args.runs < 1 or args.old == args.new:
        parser.error("two different programs and at least one run are needed")
    print(f"{'new/old':>7}  {'old: median (lowest to highest)':>32}  {'new: median (lowest to highest)':>32}  number")
    for line in compare(args.old, args.new, args.runs):
        print(line)


if __name__ == "__main__":
    main()
