"""Language models in PyTorch, made of its own modules, to compare with."""

from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


class LSTM(nn.Module):
    """An embedding, an LSTM and a read-out; each batch starts from zeros."""

    def __init__(self, tokens: int, features: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, features)
        self.core = nn.LSTM(features, width, batch_first=True)
        self.readout = nn.Linear(width, tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, T, V]`` of tokens ``[B, T]``."""
        return self.readout(self.core(self.embedding(tokens))[0])


class Transformer(nn.Module):
    """A transformer with norms before attention and MLP, as nanoGPT's, without dropout."""

    def __init__(self, tokens: int, width: int, layers: int, heads: int, window: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.zeros(window, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True, bias=False
        )
        norm = nn.LayerNorm(width, bias=False)
        self.core = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(window)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, T, V]`` of tokens ``[B, T]``; the read-out is the embedding."""
        x = self.embedding(tokens) + self.positions
        return self.core(x, mask=self.mask, is_causal=True) @ self.embedding.weight.T


def update(model: nn.Module, batch: int, window: int) -> Callable[[], float]:
    """An update with Adam on random tokens, gradients clipped to 1; calls return the loss."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tokens = torch.randint(0, 65, (batch, window + 1))

    def run() -> float:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def count(model: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())
