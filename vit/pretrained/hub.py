"""Weights by name, fetched by the library that knows it: a model of timm, or a repository of the Hugging Face Hub."""

from pathlib import Path

from vit.pretrained.sources import Source, read_source, timm_model

_PREFIXES = ("timm/", "hf-hub:")
_FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


def is_hub_name(source: object) -> bool:
    """Whether weights are meant that must be fetched: "timm/<model>" or "hf-hub:<owner>/<repository>", and no path."""
    return isinstance(source, str) and source.startswith(_PREFIXES) and not Path(source).exists()


def fetch(name: str) -> Source:
    """The weights of a name for which `is_hub_name` holds.

    Raises:
        ImportError: the package that fetches it is not installed; the message says how to.
        ConnectionError: it could not be fetched, or does not exist.
        FileNotFoundError: it has its weights in another form.
    """
    return _from_timm(name) if name.startswith("timm/") else _from_hugging_face(name)


def _from_timm(name: str) -> Source:
    try:
        model = timm_model(name.removeprefix("timm/"))
    except ImportError:
        raise
    except Exception as error:  # of many kinds: unknown names, no network, no such file there
        raise _not_fetched(name, error) from error
    return read_source(model)


def _from_hugging_face(name: str) -> Source:
    repository = name.removeprefix("hf-hub:")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"{name} needs huggingface_hub: pip install 'vit-notebooks[pretrained]'") from error
    try:
        folder = snapshot_download(repository, allow_patterns=_FILES)
    except Exception as error:
        raise _not_fetched(name, error) from error
    if not (Path(folder) / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{name} has no single model.safetensors, and nothing else is fetched: download its weights yourself, and "
            "vit.pretrained.load_weights(None, folder) reads a pytorch_model.bin too"
        )
    return read_source(folder)


def _not_fetched(name: str, error: Exception) -> ConnectionError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConnectionError(
        f"{name} could not be fetched: {first_line}. Check the name and the network; "
        "a file that you have already loads with vit.pretrained.load_weights(None, path)"
    )
