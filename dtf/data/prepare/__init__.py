"""`python -m dtf.data.prepare NAME ROOT`: from a downloaded data set to checked lists.

Reads the official annotations (or `path label` lists), finds their videos below ROOT whatever the folders are
called, opens each in a process of its own, and writes ROOT/lists: `train.txt`, `val.txt`, ... (`path label`,
paths relative to ROOT), `classes.txt`, `report.json`, `excluded.csv`. `--resize` makes a smaller copy on
the way and writes the lists there. Every result goes to `lists/journal.sqlite` at once: a run that was
stopped, in whatever way, goes on where it was when started again.

What is known of each data set stands in `dtf.data.sets`.
"""

from dtf.data.prepare.command import main

__all__ = ["main"]
