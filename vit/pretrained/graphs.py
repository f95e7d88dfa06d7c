"""Models as graphs that run without this library: torch.export's programs, and ONNX.

Both take any batch size. They hold the network alone: whoever runs one prepares the images as `model.metadata` says.
"""

import json
from pathlib import Path

import torch

from vit.files import check_json, plain_number, replacing
from vit.model.vision_transformer import VisionTransformer, check_own
from vit.modules import eval_mode

_BATCHES = (1, 3)
_TOLERANCE = 1e-4


def to_program(model: VisionTransformer) -> torch.export.ExportedProgram:
    """The model, in evaluation mode, as a program of torch.export. `torch.export.save` writes one to a file; such
    files run code when they are loaded, so open your own only."""
    model = check_own(model)
    with eval_mode(model):
        batch = torch.export.Dim("batch")
        return torch.export.export(model, (_images(model, 2),), dynamic_shapes=({0: batch},))


@torch.no_grad()  # else torch takes other kernels where a mask is trained, which become no graph
def to_onnx(model: VisionTransformer, path: str | Path) -> Path:
    """Writes the model as ONNX, with input "images" (batch, C, H, W) and output "logits", and compares it with itself.

    Images are put in normalized, as (pixels in [0, 1] - mean) / std. The file's metadata_props hold mean, std and
    class_names as JSON, as far as `model.metadata` has them.

    Raises:
        TypeError: a model of another class, or such metadata that JSON cannot hold.
        ValueError: a model that is not in float32.
        ImportError: onnx, onnxscript or onnxruntime is missing; the message says how to get them.
        RuntimeError: onnxruntime's logits are not the model's; the file is not written then.
    """
    model = check_own(model)
    if (dtype := model.patch_embed.proj.weight.dtype) != torch.float32:
        raise ValueError(f"the model is in {dtype}, of which onnxruntime computes a part only: use model.float()")
    facts = {name: model.metadata[name] for name in ("mean", "std", "class_names") if name in model.metadata}
    check_json(facts)
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"to_onnx needs {error.name}: pip install 'vit-notebooks[export]'") from error
    program = to_program(model)
    path = Path(path).expanduser()
    with replacing(path) as temporary:
        graph = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
        graph.model.metadata_props.update(
            {name: json.dumps(fact, default=plain_number) for name, fact in facts.items()}
        )
        graph.save(temporary, external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for batch in _BATCHES:
            images = _images(model, batch)
            (found,) = session.run(None, {"images": images.cpu().numpy()})
            expected = program.module()(images).detach().cpu()
            difference = (torch.from_numpy(found) - expected).abs().max().item()
            if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
                raise RuntimeError(
                    f"with {batch} images, the logits of ONNX differ from the model's by {difference:.1e}"
                )
    return path


def _images(model: VisionTransformer, batch: int) -> torch.Tensor:
    """Random images, whose generator leaves everyone else's alone."""
    reference = model.patch_embed.proj.weight
    generator = torch.Generator().manual_seed(0)
    shape = (batch, model.config.in_chans, *model.config.image_size)
    return torch.randn(shape, generator=generator, device="cpu").to(reference)
