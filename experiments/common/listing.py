"""Lists the commands of a package with a one-line description, without importing them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path


def commands(package: Path) -> Iterator[tuple[str, str]]:
    """The modules below a package that are run with ``python -m``, with their descriptions."""
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        is_command = any(
            isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body
        )
        module = path.parent if path.name == "__main__.py" else path.with_suffix("")
        if not is_command or module == package:
            continue
        lines = (ast.get_docstring(tree) or "").splitlines()
        if path.name == "__main__.py":
            of_package = ast.get_docstring(ast.parse((module / "__init__.py").read_text())) or ""
            lines = of_package.splitlines() or lines
        name = ".".join(module.relative_to(package.parent).parts)
        # The command in a docstring is omitted, because the line begins with it.
        yield name, re.split(r"[: ]+``python", lines[0])[0].rstrip(".")


def describe(package: Path) -> str:
    """The commands of a package, one per line."""
    found = list(commands(package))
    width = max(len(name) for name, _ in found)
    return "\n".join(f"python -m {name:{width}}  {what}" for name, what in found)
