"""``drloss predict``, part by part; :mod:`drloss.inference.predict` puts the parts together.

``sources.py`` finds the images and videos; ``loading.py`` reads images in processes of their own, ``videos.py`` reads
and writes videos; ``journal.py`` is the file of results in which a stopped command goes on, ``folder.py`` the folder
around it; ``formats.py`` has the records and the other formats, ``pictures.py`` the pictures and crops.
"""
