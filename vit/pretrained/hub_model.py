"""The model with the Hugging Face Hub's own verbs: save_pretrained, from_pretrained, push_to_hub.

What is stored is the file of `vit.save`, under the name that the Hub expects; config.json beside it is for readers. A
repository is public unless `push_to_hub(..., private=True)`.
"""

from pathlib import Path
from typing import Self

from vit.config import ViTConfig
from vit.model.vision_transformer import VisionTransformer, blank_model, check_own, check_plain, filled_like
from vit.pretrained.weights import load, save

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
except ImportError as error:
    raise ImportError("HubModel needs huggingface_hub: pip install 'vit-notebooks[pretrained]'") from error

_FILE = "model.safetensors"


class HubModel(
    VisionTransformer, ModelHubMixin, library_name="vit-notebooks", tags=["vision-transformer", "image-classification"]
):
    """A VisionTransformer that the Hub knows how to store. `HubModel.of(model).push_to_hub("name/of-repository")`."""

    @classmethod
    def of(cls, model: VisionTransformer) -> Self:
        """The same weights, not copied and frozen where these are, in a model with the Hub's verbs."""
        model = check_own(model)
        check_plain(model)
        return filled_like(model, blank_model(model.config, cls), model.state_dict())

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self, save_directory / _FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: ViTConfig | None = None,
    ) -> Self:
        path = Path(model_id) / _FILE
        if not path.is_file():
            path = hf_hub_download(
                model_id,
                _FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return cls.of(load(path))  # which knows its config better than the file beside it
