"""Results that show themselves in a notebook.

An object with a `_repr_html_` is drawn by Jupyter when it stands at the end of a cell. driftlens's objects have one,
a line each, that asks this package: `cards` says what is worth showing of which object, `html` and `svg` are the few
elements that cards are made of. Everything is plain text with inline SVG, needs no network and no script, is escaped
(subjects may hold `<` and `&`), and takes its colours from the page, so that it is legible in light and dark themes.
"""
