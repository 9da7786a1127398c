"""A Relational Memory Core in PyTorch, for comparison: an eager loop over the time steps.

It has the structure of the published PyTorch ports (one module, one Python loop over time), but the
mathematics of Sonnet v1's `RelationalMemory`, with the fastest formulation found for each part.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from flax.traverse_util import flatten_dict
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from rrnn_jax import RelationalMemoryCell

AttentionKind: TypeAlias = Literal["sdpa", "bmm"]
LAYER_NORM_EPSILON = 1e-5  # Sonnet v1 `LayerNorm`


class TorchRMC(nn.Module):
    """The recurrent core, with the hyperparameters of a `RelationalMemoryCell`.

    Attributes:
      cell: the corresponding Flax cell (vector inputs, no output gate).
      attention: "bmm" for two batched products, "sdpa" for `scaled_dot_product_attention`.
      skip_input_row: do not compute the input row in the last block. The published ports compute it
        and drop it.
      dtype: dtype of the products; norms, softmax, gates and memory are float32.
    """

    def __init__(
        self,
        cell: RelationalMemoryCell,
        *,
        attention: AttentionKind = "sdpa",
        skip_input_row: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if cell.matrix_inputs or cell.output_gate:
            raise ValueError(
                "cell must have matrix_inputs=False and output_gate=False, got "
                f"matrix_inputs={cell.matrix_inputs}, output_gate={cell.output_gate}"
            )
        self.cell = cell
        self.attention = attention
        self.skip_input_row = skip_input_row
        self.dtype = dtype
        self.weights = nn.ParameterDict()

    def load_flax(self, params: Mapping[str, Any]) -> None:
        """Copies the weights of a Flax cell (the tree under ``params``; without ``cell``)."""
        self.weights = nn.ParameterDict()
        for name, array in flatten_dict(params, sep="/").items():
            value = np.array(array, np.float32)
            if name.endswith("kernel"):  # `functional.linear` needs [out, in].
                value = np.ascontiguousarray(value.T)
            self.weights[name.replace("/", "-")] = nn.Parameter(torch.from_numpy(value))

    def to_flax(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Flax arrays by path from tensors named as `self.weights`, for example gradients."""
        arrays = {}
        for name, tensor in tensors.items():
            value = tensor.detach().float().cpu().numpy()
            arrays[name.replace("-", "/")] = value.T if name.endswith("kernel") else value
        return arrays

    def initial_memory(self, batch: int, device: torch.device) -> Tensor:
        """Identity rows, ``[B, S, F]``."""
        cell = self.cell
        rows = torch.eye(cell.mem_slots, cell.mem_size, device=device)
        return rows.expand(batch, -1, -1).contiguous()

    def forward(self, inputs: Tensor) -> Tensor:
        """Runs ``inputs [B, T, I]`` from identity rows; returns ``[B, T, S*F]``."""
        carry = self.initial_memory(inputs.shape[0], inputs.device)
        weights = self.compute_weights()
        outputs = []
        for x in inputs.unbind(1):
            carry = self.step(weights, carry, x)
            outputs.append(carry.flatten(1))
        return torch.stack(outputs, dim=1)

    def compute_weights(self) -> dict[str, Tensor]:
        """The weights cast to their compute dtype, once per sequence."""
        if self.dtype == torch.float32:
            return dict(self.weights.items())
        return {name: w if "norm" in name else w.to(self.dtype) for name, w in self.weights.items()}

    def step(self, w: dict[str, Tensor], memory: Tensor, x: Tensor) -> Tensor:
        """One step from ``memory [B, S, F]`` and ``x [B, I]`` to the next memory."""
        cell = self.cell
        projected = self._linear(w, "input_projection", x)
        rows = torch.cat([memory, projected.to(memory.dtype).unsqueeze(1)], dim=1)
        for block in range(cell.num_blocks):
            last = block == cell.num_blocks - 1
            kept = cell.mem_slots if last and self.skip_input_row else cell.mem_slots + 1
            rows = self._block(w, f"memory-block_{block}", rows, kept)
        candidate = rows[:, : cell.mem_slots]
        if cell.gate_style is None:
            return candidate.contiguous()
        gates = self._linear(w, "gates-input", projected).unsqueeze(1).float()
        gates = gates + self._linear(w, "gates-memory", torch.tanh(memory)).float()
        input_gate, forget_gate = gates.chunk(2, dim=-1)
        input_gate = torch.sigmoid(input_gate + cell.input_bias)
        forget_gate = torch.sigmoid(forget_gate + cell.forget_bias)
        return input_gate * torch.tanh(candidate) + forget_gate * memory

    def _block(self, w: dict[str, Tensor], name: str, rows: Tensor, kept: int) -> Tensor:
        attended = self._attend(w, name, rows, kept)
        if kept < rows.shape[1]:
            rows = rows[:, :kept]
        rows = _layer_norm(w, f"{name}-attention_norm", rows + attended)
        hidden = rows
        for layer in range(self.cell.attention_mlp_layers):
            hidden = functional.relu(hidden) if layer else hidden
            hidden = self._linear(w, f"memory-mlp-layer_{layer}", hidden)
        return _layer_norm(w, f"{name}-mlp_norm", rows + hidden)

    def _attend(self, w: dict[str, Tensor], name: str, rows: Tensor, kept: int) -> Tensor:
        cell = self.cell
        key_size = cell.head_size if cell.key_size is None else cell.key_size
        batch, count, _ = rows.shape
        qkv = self._linear(w, f"{name}-attention-qkv", rows)
        qkv = _layer_norm(w, f"{name}-attention-qkv_norm", qkv.float()).to(self.dtype)
        qkv = qkv.view(batch, count, cell.num_heads, -1).transpose(1, 2)
        query, key, value = qkv.split((key_size, key_size, cell.head_size), dim=-1)
        query = query[:, :, :kept]
        if self.attention == "sdpa":
            attended = functional.scaled_dot_product_attention(query, key, value)
        else:
            logits = torch.matmul(query * key_size**-0.5, key.transpose(-1, -2))
            probabilities = torch.softmax(logits.float(), dim=-1).to(self.dtype)
            attended = torch.matmul(probabilities, value)
        return attended.transpose(1, 2).reshape(batch, kept, cell.mem_size)

    def _linear(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.dtype), w[f"{name}-kernel"], w[f"{name}-bias"])


def _layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(
        x.float(), x.shape[-1:], w[f"{name}-scale"], w[f"{name}-bias"], LAYER_NORM_EPSILON
    )
