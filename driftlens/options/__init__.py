"""Options that several commands share: their parsing, and the editor that they describe.

torch is imported only after all options have been checked.
"""
