"""Relational Memory Core (Santoro et al. 2018) for JAX and Flax Linen."""

from rrnn_jax.attention import MultiHeadAttention as MultiHeadAttention
from rrnn_jax.attention import dot_product_attention as dot_product_attention
from rrnn_jax.cell import RelationalMemoryCell as RelationalMemoryCell
from rrnn_jax.gating import Gates as Gates
from rrnn_jax.gating import MemoryGates as MemoryGates
from rrnn_jax.memory import RelationalMemory as RelationalMemory
from rrnn_jax.rnn import RNN as RNN

__all__ = [
    "RNN",
    "Gates",
    "MemoryGates",
    "MultiHeadAttention",
    "RelationalMemory",
    "RelationalMemoryCell",
    "dot_product_attention",
]
__version__ = "0.1.0"
