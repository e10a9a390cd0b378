"""Training a detector, and the folder of a run.

Settings: ``config``, ``presets``, ``schedule`` (learning rate, optimiser). Training: ``fit`` (the loop),
``preparation`` (all before the first step), ``trainer`` (what the loop works with), ``step``, ``average`` (of the
weights), ``signals``. Watching: ``reporting``, ``messages``, ``log``, ``samples`` (pictures), ``trackers``, ``best``
(the best evaluation, and when a run has ended), ``exporting`` (of the last detector and the best). The run folder:
``run_folder`` (names, lock), ``checkpoints``, ``state`` (their content), ``resume`` (what decides it), ``records``,
``fingerprint`` (of the data), ``trained`` (loads the detector).

``inference``, ``studies`` and ``cli`` import this room.
"""
