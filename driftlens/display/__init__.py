"""Show results in a notebook.

Jupyter calls the `_repr_html_` of an object at the end of a cell. In driftlens's objects this method is one line that
calls this package: `cards` chooses what to show of each object, and `html` and `svg` make the elements of a card.
Cards are plain text with inline SVG. They need no network and no script, escape all texts (a subject may contain `<`
and `&`), and take their colours from the page, so that they are legible in light and dark themes.
"""
