"""Studies: what needs several training runs.

``compare/`` trains several losses on a user's data, ``paper/`` reruns the tables and figures of the paper.
``jobs.py`` trains the runs, several at a time. ``report/`` makes HTML pages.

``cli`` imports this room.
"""
