"""Which implementation runs a sequence: decided here and nowhere else."""

REMATS = ("none", "full", "save_products", "chunked")
IMPLEMENTATIONS = ("auto", "scan")


def resolve_implementation(implementation: str) -> str:
    """The implementation that `implementation` stands for."""
    return "scan" if implementation == "auto" else implementation
