"""``drloss compare`` and ``demo``: several losses on the user's data, and which is ahead.

``run.py`` is the command. ``measure.py`` measures a finished run, ``differences.py`` compares the losses.
``page.py`` writes the result as HTML, ``exports.py`` as Markdown and JSON.

``cli`` and ``studies.paper`` import this room.
"""
