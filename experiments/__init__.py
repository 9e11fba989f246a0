"""The paper's figures and tables, a module each: `python -m experiments.figure3 --model demo`.

A module chooses its inputs, calls the library and writes a picture, the table behind it and a caption that sets the
paper's numbers beside those found here. `python -m experiments.all` makes everything and a gallery.
"""
