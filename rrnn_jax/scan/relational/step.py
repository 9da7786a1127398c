"""One step of the relational memory as a pure function.

Terms that depend only on the inputs are computed beforehand (`input_terms.py`).

The packed axis of queries, keys and values is [all heads' q, all heads' k, all heads' v] here, not
head by head as in the parameters (`weights.packed_by_kind`). They are split at every step and
concatenated in the backward pass, which is cheap for contiguous parts.

Elementwise operations use ``[*B, rows, F]``, the shape of the products: a reshape between two
elementwise operations keeps XLA's CPU backend from vectorising the loop that fuses them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import gate_values, next_carry
from rrnn_jax.scan.relational.input_terms import InputTerms
from rrnn_jax.scan.relational.operations import add_bias, attend, layer_norm, relu, sigmoid
from rrnn_jax.scan.relational.weights import Dtypes, query_key_sizes
from rrnn_jax.typing import Array, Carry, accumulation_dtype


class Step(NamedTuple):
    """A step of `RelationalMemoryCell`, given its input terms.

    Attributes:
      cell: the cell's configuration.
      cpu: see `operations`.
      dtypes: dtypes of the products.
      product: ``product(name, rows)``, rows ``[*B, M, F]`` times the kernel of that name.
      vectors: biases and norms' scales, by name.
    """

    cell: RelationalMemoryCell
    cpu: bool
    dtypes: Dtypes
    product: Callable[[str, Array], Array]
    vectors: Mapping[str, Array]

    def __call__(self, carry: Carry, terms: InputTerms) -> tuple[Carry, dict[str, Array]]:
        """Runs the step.

        Args:
          carry: the memory ``[*B, S, F]`` or, with an output gate, (m, h).
          terms: the input terms of this step.

        Returns:
          The next carry, and what the cell sows.
        """
        cell = self.cell
        memory, hidden = carry if cell.output_gate else (carry, None)
        wide = accumulation_dtype(self.dtypes.rows, memory.dtype)
        rows, all_weights = memory.astype(wide), []
        for k in range(cell.num_blocks):
            only_memory = k == cell.num_blocks - 1 or not cell.input_queries
            qkv = self._dense(f"block_{k}/qkv", rows)
            if cell.qkv_norm:
                qkv = qkv.astype(self.dtypes.rows).astype(wide)
                qkv = self._norm(f"block_{k}/qkv_norm", qkv)
            from_input = terms.qkv[k] if k < len(terms.qkv) else None
            qkv = qkv.astype(self.dtypes.rows)
            attended, weights = self._attend(qkv, from_input, only_memory, terms.present)
            all_weights.append(weights[..., : cell.mem_slots, :])
            if only_memory:
                rows = rows[..., : cell.mem_slots, :]
            elif k == 0:
                assert terms.rows is not None
                rows = jnp.concatenate([rows, terms.rows.astype(wide)], axis=-2)
            rows = self._norm(f"block_{k}/attention_norm", rows + attended.astype(wide))
            rows = self._norm(f"block_{k}/mlp_norm", rows + self._mlp(rows))
        sown = {"attention_weights": jnp.stack(all_weights, axis=-4)}
        if cell.gate_style is None or terms.gates is None:
            return cell.dropout(rows, terms.kept).astype(memory.dtype), sown

        shown = jnp.tanh(memory) if hidden is None else hidden
        packed = self.product("gates", shown.astype(self.dtypes.gates)).astype(terms.gates.dtype)
        gates = gate_values(
            cell.gate_style,
            packed + terms.gates[..., None, :],
            cell.input_bias,
            cell.forget_bias,
            cell.output_gate,
            sigmoid,
        )
        sown |= {f"{name}_gate": x for name, x in gates._asdict().items() if x is not None}
        gates = gates._replace(input=cell.dropout(gates.input, terms.kept))
        return next_carry(gates, rows, memory, hidden), sown

    def _dense(self, name: str, rows: Array) -> Array:
        product = self.product(name, rows.astype(self.dtypes.rows))
        return add_bias(self.cpu, product.astype(rows.dtype), self.vectors[f"{name}/bias"])

    def _norm(self, name: str, rows: Array) -> Array:
        scale, bias = self.vectors[f"{name}/scale"], self.vectors[f"{name}/bias"]
        return layer_norm(self.cpu, rows, scale, bias)

    def _mlp(self, rows: Array) -> Array:
        for j in range(self.cell.attention_mlp_layers):
            rows = self._dense(f"mlp/layer_{j}", relu(rows) if j > 0 else rows)
        return rows

    def _attend(
        self, qkv: Array, input_qkv: Array | None, only_memory: bool, present: Array | None
    ) -> tuple[Array, Array]:
        """Attention of memory rows (and, between blocks, input rows) to all rows.

        Heads go before rows, because batched products need their batch axes first.
        """
        cell = self.cell
        queries, keys, _ = query_key_sizes(cell)

        def heads_first(x: Array) -> Array:
            return jnp.swapaxes(x.reshape(*x.shape[:-1], cell.num_heads, -1), -3, -2)

        query, key, value = jnp.split(qkv, (queries, queries + keys), axis=-1)
        if only_memory:
            query = query[..., : cell.mem_slots, :]
        query, key, value = heads_first(query), heads_first(key), heads_first(value)
        if input_qkv is not None:
            if not only_memory:
                query = jnp.concatenate([query, heads_first(input_qkv[..., :queries])], axis=-2)
            from_input = input_qkv[..., input_qkv.shape[-1] - keys - cell.mem_size :]
            input_key, input_value = jnp.split(from_input, (keys,), axis=-1)
            key = jnp.concatenate([key, heads_first(input_key)], axis=-2)
            value = jnp.concatenate([value, heads_first(input_value)], axis=-2)
        if present is not None:
            widths = [(0, 0)] * (present.ndim - 1) + [(cell.mem_slots, 0)]
            present = jnp.pad(present, widths, constant_values=True)
        attended, weights = attend(self.cpu, query, key, value, present, cell.precision)
        attended = jnp.swapaxes(attended, -3, -2)
        return attended.reshape(*attended.shape[:-2], cell.mem_size), weights
