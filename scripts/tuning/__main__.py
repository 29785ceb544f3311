"""What tuning reaches, and how fast. Prints JSON; nothing else may run on the machine meanwhile.

scripts/bench-tuning boards                       jobs a second of 1 and 8 boards at 0.2 s each, of 1 and 64 at 2 s;
                                                  and processor time of a job, on both sides together
scripts/bench-tuning rate --network resnet50      trials a minute, ours and MetaSchedule's; where time goes
scripts/bench-tuning gain --network mobilenet_v2  how much of the gain of many trials the first 150 find
scripts/bench-tuning resume --trials 120          a run that was stopped six times, against one left alone: end to end
scripts/bench-tuning stock --network resnet50     end to end after as long, ours and MetaSchedule's
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from scripts.tuning import boards, ours, resume, stock


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "scripts/bench-tuning", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("what", choices=("boards", "rate", "gain", "resume", "stock"))
    made.add_argument("--case", metavar="PAUSE,BOARDS,JOBS", help="for boards: this alone, such as 2,64,5")
    made.add_argument("--rounds", type=int, default=boards.ROUNDS, help="for boards")
    made.add_argument("--network", default="mobilenet_v2", help="of tests/networks.py")
    made.add_argument("--recipe", default="", help="such as int8; the model as it is unless given")
    made.add_argument("--minutes", type=float, default=15.0, help="of tuning, each")
    made.add_argument("--trials", type=int, default=1000, help="for gain and resume")
    made.add_argument("--stops", type=int, default=6, help="for resume")
    return made


def parsed(case: str) -> tuple[float, int, int]:
    pause, count, jobs = case.split(",")
    return float(pause), int(count), int(jobs)


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="tvmcompress-bench-") as name:
        folder = Path(name)
        if options.what == "boards":
            cases = [parsed(options.case)] if options.case else boards.CASES
            found: dict = boards.measure(folder, cases, options.rounds)
        elif options.what == "gain":
            found = ours.gain(folder, options.network, options.recipe, options.trials)
        elif options.what == "resume":
            found = resume.measure(folder, options.network, options.recipe, options.trials, options.stops)
        else:
            seconds = 60 * options.minutes
            found = {"ours": ours.run(folder, options.network, options.recipe, seconds)}
            found["stock"] = stock.run(folder, options.network, seconds)
            a, b = found["ours"], found["stock"]
            found["trials_ratio"] = a["trials_per_minute"] / b["trials_per_minute"] if b["trials_per_minute"] else None
            if options.what == "stock":
                found["times_faster"] = stock.race(a, b)
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
