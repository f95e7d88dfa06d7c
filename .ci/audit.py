"""Known weaknesses of what this project asks for: of the oldest versions it allows, and of those that are installed.

    python .ci/audit.py

Asks pip-audit, which asks the package registry. A version that is known to be weak is asked about too: if nothing is
known of that, the answer "no known weakness" means nothing, and this program says so.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTROL = ("pillow", "9.0.0")


def floors() -> dict[str, str]:
    """The oldest version allowed of each package, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    asked += (ROOT / "requirements.txt").read_text().splitlines()
    found = (re.match(r"([\w.-]+)>=([\w.]+)$", requirement) for requirement in asked)
    return {match[1].lower(): match[2] for match in found if match}


def audit(*arguments: str) -> dict[str, list[str] | None]:
    """What is known of each package: a list of weaknesses, or None if there was no answer. Empty without a network."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return {}
    return {
        f"{package['name']} {package.get('version', '')}".strip(): None
        if "skip_reason" in package
        else [weakness["id"] for weakness in package["vulns"]]
        for package in packages
    }


def audit_versions(versions: dict[str, str]) -> dict[str, list[str] | None]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        return audit(f"--requirement={path}", "--no-deps", "--disable-pip")


def main() -> int:
    if not any(audit_versions(dict([CONTROL])).values()):
        print(
            f"not audited: nothing is known of {' '.join(CONTROL)}, which has known weaknesses, so the database of the"
        )
        print("package registry cannot be reached from here. Run this where it answers.")
        return 2
    found = audit_versions(floors()) | audit("--skip-editable")
    for name, weaknesses in found.items():
        if weaknesses is None:
            print(f"{name}: no answer")
        elif weaknesses:
            print(f"{name}: {', '.join(weaknesses)}")
    weak, silent = (sum(bool(test(w)) for w in found.values()) for test in (bool, lambda w: w is None))
    print(f"{len(found)} packages: {weak} with known weaknesses, {silent} without an answer")
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main())
