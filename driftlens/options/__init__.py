"""Options that several command lines share: how they are parsed, and the editor that they make.

Nothing here imports torch before every option has been looked at.
"""
