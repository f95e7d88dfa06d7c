"""The head: what was pooled to logits, by one linear layer or by the paper's pre-training head."""

from torch import Tensor, nn

from vit.config import ViTConfig


class MlpHead(nn.Module):
    """The paper's pre-training head: one tanh hidden layer as wide as what it reads (section 3.1, appendix D.3)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.act = nn.Tanh()
        self.fc2 = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # (B, num_classes)


def build_head(config: ViTConfig) -> nn.Module:
    """The part that turns what was pooled into logits, with torch's own start weights."""
    if config.num_classes == 0:
        return nn.Identity()
    return (MlpHead if config.head == "mlp" else nn.Linear)(config.pooled_dim, config.num_classes)
