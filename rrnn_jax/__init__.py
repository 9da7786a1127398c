"""Relational Memory Core (Santoro et al. 2018) for JAX and Flax Linen."""

from rrnn_jax.attention import MultiHeadAttention as MultiHeadAttention
from rrnn_jax.attention import dot_product_attention as dot_product_attention
from rrnn_jax.carry import reset_carry as reset_carry
from rrnn_jax.cell import RelationalMemoryCell as RelationalMemoryCell
from rrnn_jax.gating import Gates as Gates
from rrnn_jax.gating import MemoryGates as MemoryGates
from rrnn_jax.layers import Bidirectional as Bidirectional
from rrnn_jax.layers import RNNStack as RNNStack
from rrnn_jax.memory import RelationalMemory as RelationalMemory
from rrnn_jax.rnn import RNN as RNN
from rrnn_jax.scan.sequence import SequenceOutputs as SequenceOutputs

__all__ = [
    "RNN",
    "Bidirectional",
    "Gates",
    "MemoryGates",
    "MultiHeadAttention",
    "RNNStack",
    "RelationalMemory",
    "RelationalMemoryCell",
    "SequenceOutputs",
    "dot_product_attention",
    "reset_carry",
]
__version__ = "0.1.0"
