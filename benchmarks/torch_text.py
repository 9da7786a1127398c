"""Language models in PyTorch, made of its own modules, to compare with."""

from collections.abc import Callable
from typing import Any

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
        return self.read(tokens)[0]

    def read(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """The same from a state (None: zeros), and the state after the tokens."""
        y, state = self.core(self.embedding(tokens), state)
        return self.readout(y), state


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
        length = tokens.shape[1]
        x = self.embedding(tokens) + self.positions[:length]
        mask = self.mask[:length, :length]
        return self.core(x, mask=mask, is_causal=True) @ self.embedding.weight.T

    def read(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Reads the last window again, as nanoGPT does; the state is that window."""
        window = tokens if state is None else torch.cat((state, tokens), 1)
        window = window[:, -len(self.positions) :]
        return self(window), window


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


def write(model: LSTM | Transformer, count: int) -> Callable[[], torch.Tensor]:
    """Calls write tokens one after the other: temperature 0.8, of the 20 most likely."""

    @torch.inference_mode()
    def run() -> torch.Tensor:
        token, state, text = torch.zeros(1, 1, dtype=torch.long), None, []
        for _ in range(count):
            logits, state = model.read(token, state)
            best, tokens = (logits[:, -1] / 0.8).topk(20)
            token = tokens.gather(1, torch.multinomial(best.softmax(-1), 1))
            text.append(token)
        return torch.cat(text, 1)

    return run


def count(model: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())
