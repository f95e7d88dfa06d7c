"""Progress bars that suit where they are shown: widgets in a notebook, text in a terminal or a log.

The environment variable VIT_PROGRESS chooses: "auto" (default), "text" (also in a notebook run without a browser) or
"none".
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

from vit.arguments import check_choice

STYLES = ("auto", "text", "none")


def progress_bar(iterable: Iterable | None = None, *, disable: bool = False, **options: Any) -> Any:
    """A tqdm bar in the style that VIT_PROGRESS asks for; none where it asks for none, or with `disable`."""
    style = os.environ.get("VIT_PROGRESS", "auto")
    check_choice("VIT_PROGRESS", style, STYLES)
    if style == "auto":
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(iterable, disable=disable or style == "none", **{"mininterval": 0.5, "dynamic_ncols": True, **options})


def say(message: str) -> None:
    """Prints a line to stderr that leaves progress bars whole; VIT_PROGRESS does not silence it."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)
