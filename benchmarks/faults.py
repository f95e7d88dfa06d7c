"""Every fault that this project holds itself to, and what proves that it ends well: a test each, or a reason.

    python benchmarks/faults.py [--quick]

Runs the tests that the rows name, the killed trainings of kills.py (140 of them) and the damaged files of fuzz.py
(24,000), prints fault, proof and outcome, and stores the counts. `--quick` only looks whether the tests exist.
Rows and numbers are those of a survey of faults in this field; what "well" means is in each test.
"""

import argparse
import ast
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fuzz
import kills
import report
from fault_table import ROWS, NotApplicable

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "make test-faults"


@cache
def tests_in(name: str) -> frozenset[str]:
    """The tests of tests/test_<name>.py."""
    path = ROOT / "tests" / f"test_{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def missing(tests: str) -> list[str]:
    """Those of the tests of a row that do not exist."""
    return [test for test in tests.split() if test.split("::")[1] not in tests_in(test.split("::")[0])]


def node_id(test: str) -> str:
    file, name = test.split("::")
    return f"tests/test_{file}.py::{name}"


def run_tests(tests: set[str]) -> dict[str, str]:
    """What became of each test in all its forms: "pass", "skipped" or "FAIL"."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={path}", *sorted(map(node_id, tests))]
        subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        cases = ElementTree.parse(path).iter("testcase")
        found: dict[str, set[str]] = {}
        for case in cases:
            name = f"{case.get('classname').removeprefix('tests.test_')}::{case.get('name').split('[')[0]}"
            kinds = {child.tag for child in case}
            outcome = "FAIL" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "pass"
            found.setdefault(name, set()).add(outcome)
    order = ("FAIL", "pass", "skipped")
    return {test: next(o for o in order if o in found.get(test, {"FAIL"})) for test in tests}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only look whether the tests exist; stores nothing")
    options = parser.parse_args()
    named = {test for _, proof in ROWS.values() if isinstance(proof, str) for test in proof.split()}
    results = {test: "FAIL" if missing(test) else "exists" for test in named} if options.quick else run_tests(named)
    counts = {"pass": 0, "FAIL": 0, "n/a": 0}
    for number, (fault, proof) in ROWS.items():
        if isinstance(proof, NotApplicable):
            outcome, why = "n/a", proof.reason
        else:
            outcome = "FAIL" if any(results[test] in ("FAIL", "skipped") for test in proof.split()) else "pass"
            why = ", ".join(proof.split())
        counts[outcome] += 1
        print(f"{number:>2}  {outcome:<4}  {fault:<50}  {why}")
    print(f"{len(ROWS)} faults: {counts['pass']} pass, {counts['FAIL']} fail, {counts['n/a']} cannot happen here\n")
    return max(counts["FAIL"] > 0, 0 if options.quick else run_in_full(counts))


def run_in_full(counts: dict[str, int]) -> bool:
    """The killed trainings and the damaged files; stores all counts, and says whether anything went wrong."""
    claims = [report.claim(f"rows_{name.lower().replace('/', '')}", [n], "rows", COMMAND) for name, n in counts.items()]
    rows = kills.summarize(list(kills.outcomes(kills.COUNTS)))
    for row in rows:
        print(kills.describe(row))
        for key in ("runs", "inside_save", "same_bits"):
            claims.append(report.claim(f"{row['signal'].lower()}_{key}", [row[key]], "runs", COMMAND))
    found = fuzz.fuzz_all(fuzz.TOTAL)
    print("\n" + fuzz.table(found))
    files, wrong = sum(o.files for o in found), sum(len(o.wrong) for o in found)
    claims += [
        report.claim("fuzz_files", [files], "files", COMMAND),
        report.claim("fuzz_wrong", [wrong], "files", COMMAND),
    ]
    report.publish("faults", claims)
    return wrong > 0 or any(row["same_bits"] < row["runs"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
