"""How many operations a Relational Memory Core needs: counted by hand, product by product.

XLA's own count (`cost_analysis`) takes a loop's body once, whatever the number of iterations.
Only matrix products are counted, a multiplication and an addition as two operations. Each is
counted as often as it has to be done: what the last block makes of the input row is not.
"""

import dataclasses

from benchmarks.settings import Setting


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product ``[rows, k] @ [k, n]`` with a weight, done once per step.

    Attributes:
      name: which weight.
      rows: rows of the left side, batch included.
      k: contracted size.
      n: columns of the weight.
      in_loop: whether it waits for the memory of the step before; the others can be done for all
        steps at once.
      needs_input_gradient: whether training needs the gradient of its left side.
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
    """The products with weights that one step of the core needs.

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
        # Only in a block that another follows does the input row become anything.
        rows = B * S if block == setting.blocks - 1 else B * (S + 1)
        found += [Product("mlp", rows, F, F, in_loop=True)] * setting.mlp_layers
    gates = {"unit": 2 * F, "memory": 2, None: 0}[setting.gate_style]
    if gates:
        found.append(Product("gates_input", B, F, gates, in_loop=False))
        found.append(Product("gates_memory", B * S, F, gates, in_loop=True))
    return found


def attention_flops(setting: Setting) -> int:
    """Operations of the two attention products of one step, all blocks."""
    B, S, F = setting.batch, setting.slots, setting.width
    rows = setting.blocks * S + (setting.blocks - 1)
    return 4 * B * rows * (S + 1) * F


def forward_flops(setting: Setting) -> int:
    """Operations of a whole sequence, forward."""
    step = sum(product.flops for product in products(setting)) + attention_flops(setting)
    return setting.steps * step


def training_flops(setting: Setting) -> int:
    """Operations of a whole sequence, forward and backward, nothing computed twice."""
    backward = 2 * attention_flops(setting)
    for product in products(setting):
        backward += product.flops * (1 + product.needs_input_gradient)
    return forward_flops(setting) + setting.steps * backward


def fused_bytes(setting: Setting) -> int:
    """Bytes that a forward pass must move if all of a step's work stayed on the chip.

    Memory read once and written once as the output, the input's terms read: ``B (S + 4) F``
    elements for each step, and the weights once for the whole sequence.
    """
    size = 2 if setting.dtype == "bfloat16" else 4
    weights = sum(product.k * product.n for product in products(setting))
    rows = setting.batch * (setting.slots + 4) * setting.width
    return size * (setting.steps * rows + weights)
