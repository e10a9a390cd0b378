"""``drloss reproduce``: the tables and figures of the paper, rerun.

``names.py`` lists what can be asked for, ``numbers.py`` has every number of the paper and the run behind it,
``claims.py`` what the paper concludes. ``reproduce.py`` is the command, ``records.py`` reads evaluated runs,
``tables.py`` writes the page. ``scores.py`` draws Figures 1, 4 and 5, ``schematics.py`` Figures 2 and 3.

``cli`` imports this room.
"""
