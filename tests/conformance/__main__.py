"""python -m tests.conformance [--stock] [--update-golden] [--failures FILE] [name …]: run cases, print counts."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from tests.conformance import harness
from tests.conformance.cases import node_cases

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="cases, all by default; a name may end in *")
    parser.add_argument("--stock", action="store_true", help="TVM's own importer instead of ours (golden: stock.txt)")
    parser.add_argument("--update-golden", action="store_true", help="write the names that pass into the golden file")
    parser.add_argument("--failures", metavar="FILE", help="write the cases that fail, and why")
    options = parser.parse_args()

    cases = node_cases()
    names = list(cases)
    if options.names:
        names = [n for n in names if any(n == w or (w.endswith("*") and n.startswith(w[:-1])) for w in options.names)]
    outcomes = []
    for outcome in harness.run(names, cases, harness.stock if options.stock else harness.ours):
        outcomes.append(outcome)
        if options.names:
            print(outcome)
        elif len(outcomes) % 100 == 0:
            print(f"{len(outcomes)}/{len(names)}: {sum(o.passed for o in outcomes)} pass", flush=True)
    passed = [o for o in outcomes if o.passed]
    bound = sum(o.values for o in passed)
    print(
        f"{len(passed)} of {len(outcomes)} pass "
        f"({len(passed) - bound} with nothing bound, {bound} with inputs bound as values)"
    )
    if options.update_golden and not options.names:
        golden = HERE / ("stock.txt" if options.stock else "passing.txt")
        golden.write_text("".join(f"{o.name}\n" for o in passed))
    if options.failures:
        failed = [o for o in outcomes if not o.passed]
        Path(options.failures).write_text("".join(f"{o.name}\t{o.reason}\n" for o in failed))
        for text, count in Counter(o.reason[:60] for o in failed).most_common(20):
            print(f"{count:5} {text}")


if __name__ == "__main__":
    main()
