"""The stored results of ablations.py, as a table and as a figure."""

from typing import Any

import report
from ablation_variants import VARIANTS


def everything() -> list[dict]:
    """All stored claims, budget after budget, each with its base first."""
    return list(report.stored("ablations").values())


def stored(minutes: float) -> list[dict]:
    """The stored claims at a budget, the base first; empty if there are none yet."""
    return [claim for claim in everything() if claim["minutes"] == minutes]


def merged(claims: list[dict]) -> list[dict]:
    """All claims of one budget, as its cells have them now, beside the stored ones of other budgets."""
    others = [claim for claim in everything() if claim["minutes"] != claims[0]["minutes"]]
    return sorted([*claims, *others], key=lambda claim: (claim["minutes"], "setup" not in claim))


def table(claims: list[dict]) -> str:
    """Accuracy and difference from the base, best first."""
    form = "{:<30} {:>7} {:>7} {:>7} {:>6} {:>6} {:>7}"
    lines = [form.format("variant", "val %", "differs", "spread", "seeds", "steps", "passes")]
    [base] = [claim for claim in claims if "setup" in claim]
    for c in sorted(claims, key=lambda c: -c["value"]):
        spread = f"{c['spread']:.2f}" if len(c["values"]) > 1 else "-"
        numbers = f"{c['value']:.2f} {c['value'] - base['value']:+.2f} {spread} {len(c['values'])}"
        lines.append(form.format(c["label"], *numbers.split(), c["steps"], f"{c['passes']:.2f}"))
    return "\n".join(lines)


def figure(minutes: float) -> Any:
    """The stored differences at a budget, drawn; where there are none, says so and returns None."""
    from vit import plots  # here, since no training needs matplotlib

    claims = stored(minutes)
    if not claims:
        print(f"no results of {minutes:g} minutes yet: python benchmarks/ablations.py --minutes {minutes:g}")
        return None
    machine, seeds = claims[0]["measured"]["hardware"], {len(claim["values"]) for claim in claims}
    counted = " to ".join(str(n) for n in sorted({min(seeds), max(seeds)}))
    title = f"{minutes:g} minutes on {machine}, {counted} seed{'s' * (max(seeds) > 1)} each"
    results = {claim["label"]: claim["values"] for claim in claims}
    return plots.plot_differences(results, VARIANTS["base"].label, title=title)
