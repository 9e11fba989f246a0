"""Where things lie: the repository, and what stands beside it for whoever has it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
