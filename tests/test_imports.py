"""Who may import whom, and what `import vit` may cost. The rules are those of the README's table of files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vit"
LEAVES = {
    "vit.arguments",
    "vit.config",
    "vit.files",
    "vit.progress",
    "vit.device",
    "vit.pictures",
    "vit.modules",
    "vit.metadata",
    "vit.normalization",
}
# For each module or folder: the modules of this package that it may import, longest match first.
ALLOWED = {
    "vit.arguments": set(),
    "vit.config": {"vit.arguments"},
    "vit.modules": set(),
    "vit.metadata": set(),
    "vit.normalization": set(),
    "vit.files": set(),
    "vit.pictures": {"vit.files"},
    "vit.progress": {"vit.arguments"},
    "vit.device": {"vit.arguments", "vit.config"},
    "vit.model.patch_embed": set(),
    "vit.model.pos_embed": {"vit.arguments"},
    "vit.model.transformer": {"vit.arguments", "vit.model.pos_embed"},
    "vit.model": {"vit.config", "vit.model"},
    "vit.model.vision_transformer": {"vit.config", "vit.modules", "vit.model"},
    "vit.data": {*LEAVES, "vit.data"},
    "vit.training": {*LEAVES, "vit.training"},
    "vit.analysis": {
        *{"vit.model.transformer", "vit.model.patch_embed"},
        *LEAVES - {"vit.config", "vit.device"},
        "vit.analysis",
    },
    # Which takes real steps on a device.
    "vit.analysis.estimate": {"vit.arguments", "vit.device", "vit.modules", "vit.analysis"},
    # Where both configs, the network and its optimizers meet, to tell the cost of a network before there is one.
    "vit.analysis.forecast": {
        *{"vit.config", "vit.device", "vit.model", "vit.analysis"},
        *{"vit.training.optim", "vit.training.memory"},
    },
    "vit.pretrained": {*LEAVES - {"vit.progress"}, "vit.model", "vit.pretrained"},
    "vit.plots": {"vit.arguments", "vit.plots"},
    "vit.launch": set(),
    "vit.tasks": {*LEAVES, "vit.model", "vit.data", "vit.training"},
    # A command, which leaves the weights it has trained.
    "vit.tasks.train": {"vit.config", "vit.device", "vit.model", "vit.data", "vit.training", "vit.pretrained"},
    "vit.widgets": {"vit.pictures", "vit.analysis", "vit.plots", "vit.training", "vit.widgets"},
    # Panels that do what a cell would do from configs on.
    "vit.widgets.config_form": {"vit.config", "vit.widgets"},
    "vit.widgets.playground": {
        *{f"vit.{room}" for room in ("config", "model", "data", "training", "pretrained")},
        *{"vit.analysis", "vit.plots", "vit.widgets"},
    },
}
THIRD_PARTY = {
    "matplotlib": {"vit.plots", "vit.widgets"},
    "torchvision": {"vit.data"},
    "safetensors": {"vit.pretrained"},
    "tqdm": {"vit.progress"},
    "PIL": {"vit.data", "vit.pictures"},
    "timm": {"vit.pretrained"},
    "huggingface_hub": {"vit.pretrained"},
    "onnxruntime": {"vit.pretrained"},
    "transformers": set(),
    "sklearn": {"vit.analysis.probes"},
    "ipywidgets": {"vit.widgets"},
    "optuna": {"vit.training"},
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself, which this test could not follow"
            names.add(node.module or "")
    return names


def is_within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


@pytest.mark.parametrize("module", sorted(set(modules()) - {"vit"}))
def test_imports_follow_the_arrows(module):
    room = max((r for r in ALLOWED if is_within(module, r)), key=len)
    for name in imports(modules()[module]):
        if is_within(name, "vit"):
            assert any(is_within(name, allowed) for allowed in ALLOWED[room]), f"{module} must not import {name}"
        for package, homes in THIRD_PARTY.items():
            if is_within(name, package):
                assert any(is_within(module, home) for home in homes), f"{module} must not import {package}"


def test_no_drawers():
    drawers = {"utils", "helpers", "common", "misc"}
    assert not {name for name in modules() if name.rsplit(".", 1)[-1] in drawers}


HEAVY = {"torchvision", "matplotlib", "ipywidgets", "timm", "huggingface_hub", "transformers", "onnx", "optuna"}


@pytest.fixture(scope="module")
def fresh() -> list[str]:
    """What a new Python prints, a line a question; every question leaves more imported for the next."""
    code = f"""
import sys, vit
print(hasattr(vit, "plot_history"), "torch" in sys.modules)
print(vit.tasks.lora.__name__)
import vit.data.augment
vit.ViTConfig; vit.VisionTransformer; vit.fit; vit.load
print(sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_import_is_light_and_silent(fresh):
    assert fresh[2] == "[]" and len(fresh) == 3, "nothing else is printed"


def test_every_public_name_is_there(fresh):
    import vit

    for name in vit.__all__:
        assert getattr(vit, name).__name__ == name
        assert getattr(vit, name).__doc__
    assert set(dir(vit)) >= set(vit.__all__)
    for wrong, hint in {"Vit": "$", "attention_maps": "; it is vit.analysis.attention_maps$", "_x": "$"}.items():
        with pytest.raises(AttributeError, match=f"module 'vit' has no attribute '{wrong}'{hint}"):
            getattr(vit, wrong)
    assert fresh[0] == "False False", "who asks in vain does not wait for imports"


def test_tasks_need_no_import_of_their_own(fresh):
    assert fresh[1] == "vit.tasks.lora"
    files = {path.stem for path in (PACKAGE / "tasks").glob("*.py")} - {"__init__", "train"}  # that one is a command
    import vit

    assert set(vit.tasks.__all__) == files
    with pytest.raises(AttributeError, match="module 'vit.tasks' has no attribute 'lore'; it holds fine_tuning, lora"):
        vit.tasks.lore  # noqa: B018


def test_rooms_show_what_is_public_and_no_import_of_their_own():
    import vit

    for room in (vit.pretrained, vit.tasks, vit.widgets):
        assert dir(room) == sorted(room.__all__) and all(hasattr(room, name) for name in room.__all__)
    code = (
        "import vit; print(vit.data.corruptions.__name__, 'lora' in dir(vit.tasks), 'HubModel' in dir(vit.pretrained))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "vit.data.corruptions True True\n"


def test_shape_comments_use_one_notation():
    """A trailing comment such as (B, h, T, d) holds the legend's letters, a few named sizes, and their arithmetic."""
    legend = {*"BCHWNTDKhwdpm", "hidden", "num_classes", "num_outputs"}
    for path in (PACKAGE / "model").glob("*.py"):
        for line in path.read_text().splitlines():
            for shape in re.findall(r"#.*?\(([^()]+, [^()]+)\)$", line):
                names = set(re.findall(r"[A-Za-z_]+", shape))
                assert names <= legend, f"{path.name}: {line.strip()}"
