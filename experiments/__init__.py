"""The paper's figures and tables, a module each: `python -m experiments.figure3 --model demo`.

A module chooses its inputs, calls the library and writes a picture, the table behind it, and a caption that compares
the paper's numbers with ours. `python -m experiments.all` makes everything, and a gallery.
"""

import sys

from driftlens.options.program import interrupts_in_one_line

if sys.argv[:1] == ["-m"]:  # `python -m experiments.figure3` looks for the module, and is about to import torch
    interrupts_in_one_line()
