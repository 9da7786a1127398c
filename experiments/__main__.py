"""Lists the commands: ``python -m experiments``."""

from pathlib import Path

from experiments.common.listing import describe

if __name__ == "__main__":
    print(describe(Path(__file__).parent))
    print("\nEach has --help; see also experiments/README.md.")
