"""`rae-input`: a process of its own that says when this machine's input was last used, no more.

Everything in here is imported by a detector that may have 12 MB: no dataclasses, typing, pathlib
or argparse at run time, which would take a quarter of that.
"""
