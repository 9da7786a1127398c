"""The number of operations of a Relational Memory Core, from its matrix products.

XLA's own count (`cost_analysis`) counts a loop's body once, whatever the number of iterations.
Only matrix products are counted, with a multiplication and an addition as two operations. Products
that are not necessary, such as those of the input row in the last block, are not counted.
"""

import dataclasses

from benchmarks.settings import Setting
from rrnn_jax.gating import packed_width


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product ``[rows, k] @ [k, n]`` with a weight, done once per step.

    Attributes:
      name: name of the weight.
      rows: rows of the left operand, including the batch.
      k: contracted size.
      n: columns of the weight.
      in_loop: whether it depends on the previous memory; the others can be computed for all steps
        at once.
      needs_input_gradient: whether training needs the gradient of its left operand.
    """

    name: str
    rows: int
    k: int
    n: int
    in_loop: bool
    needs_input_gradient: bool = True

    @property
    def flops(self) -> int:
        """Operations of one step, forward."""
        return 2 * self.rows * self.k * self.n


def products(setting: Setting) -> list[Product]:
    """The products with weights of one step of the core.

    >>> from benchmarks.settings import SETTINGS
    >>> [(p.name, p.rows, p.k, p.n) for p in products(SETTINGS["toy"]) if p.in_loop]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('qkv', 4, 8, 24), ('mlp', 4, 8, 8), ('mlp', 4, 8, 8), ('gates_memory', 4, 8, 16)]
    """
    B, S, F = setting.batch, setting.slots, setting.width
    found = [
        Product("input_projection", B, setting.features, F, False, setting.input_gradients),
        Product("qkv_input", B, F, 3 * F, in_loop=False),
    ]
    for block in range(setting.blocks):
        if block > 0:
            found.append(Product("qkv_input", B, F, 3 * F, in_loop=True))
        found.append(Product("qkv", B * S, F, 3 * F, in_loop=True))
        # The last block does not compute the input row.
        rows = B * S if block == setting.blocks - 1 else B * (S + 1)
        found += [Product("mlp", rows, F, F, in_loop=True)] * setting.mlp_layers
    gates = packed_width(setting.gate_style, F, output_gate=False)
    if gates:
        found.append(Product("gates_input", B, F, gates, in_loop=False))
        found.append(Product("gates_memory", B * S, F, gates, in_loop=True))
    return found


def attention_flops(setting: Setting) -> int:
    """Operations of the two attention products of one step, all blocks."""
    B, S, F = setting.batch, setting.slots, setting.width
    rows = setting.blocks * S + (setting.blocks - 1)
    return 4 * B * rows * (S + 1) * F


def gated_products(setting: Setting, width: int, gates: int) -> list[Product]:
    """The products of one step of an LSTM (4 gates) or a GRU (3) with this width."""
    B, n = setting.batch, gates * width
    inputs = Product("input", B, setting.features, n, False, setting.input_gradients)
    return [inputs, Product("recurrent", B, width, n, in_loop=True)]


@dataclasses.dataclass(frozen=True)
class Work:
    """The least work of a call.

    Attributes:
      flops: operations of the products, each computed once.
      bytes: bytes to move if all of a step's work stayed on the chip; None for single steps, whose
        weights may stay in a cache from one call to the next.
      chain: the number of dependent products.
    """

    flops: int
    bytes: int | None
    chain: int


def core_work(setting: Setting, mode: str) -> Work:
    """The work of the relational memory.

    A forward pass writes the memory of each step, ``S F`` elements, and reads the input's terms,
    its key, value and gates, or the input itself if that is smaller: ``min(2 F + gates, I)``. A
    backward pass reads memories, their cotangents and the terms, and writes the terms' cotangents.
    The weights are read once for each pass, their gradients written.

    Args:
      setting: the sizes.
      mode: "forward", "train" or "streaming".
    """
    S, F = setting.slots, setting.width
    # In each block: queries, logits, the weighted sum, then the MLP. Gates are parallel to them.
    chain = setting.blocks * (3 + setting.mlp_layers)
    gates = packed_width(setting.gate_style, F, output_gate=False)
    terms = min(2 * F + gates, setting.features)
    rows = S * F + terms, 2 * S * F + 2 * terms
    weights = (setting.features + (3 * setting.blocks + setting.mlp_layers) * F + 2 * gates) * F
    needed, attention = products(setting), attention_flops(setting)
    return _work(setting, mode, needed, attention, rows, chain, weights)


def gated_work(setting: Setting, width: int, gates: int, mode: str) -> Work:
    """The work of an LSTM (4 gates) or a GRU (3); terms as in `core_work`."""
    needed = gated_products(setting, width, gates)
    terms = min(gates * width, setting.features)
    rows = width + terms, 2 * width + 2 * terms
    weights = sum(product.k * product.n for product in needed)
    return _work(setting, mode, needed, 0, rows, 1, weights)


def _work(
    setting: Setting,
    mode: str,
    needed: list[Product],
    attention: int,
    rows: tuple[int, int],
    chain: int,
    weights: int,
) -> Work:
    """The sum over a sequence: `rows` are elements moved per row and step, forward and backward.

    `weights` is the size of all kernels; products of memory and input share them, and blocks share
    the MLP.
    """
    train, batch, steps = mode == "train", setting.batch, setting.steps
    size = 2 if setting.dtype == "bfloat16" else 4
    flops = attention + sum(product.flops for product in needed)
    moved = size * (steps * batch * rows[0] + weights)
    if train:
        flops += 2 * attention
        flops += sum(product.flops * (1 + product.needs_input_gradient) for product in needed)
        moved += size * (steps * batch * rows[1] + weights) + 4 * weights
    single = mode == "streaming"
    return Work(steps * flops, None if single else moved, steps * chain * (1 + train))
