"""HTML pages: what all of them share.

``rendering.py`` fills the Jinja2 templates of ``templates/``. ``gallery.py`` makes the picture of detections.

``studies.compare`` imports this room.
"""
