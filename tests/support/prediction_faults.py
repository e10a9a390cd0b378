"""Faults of ``drloss predict``, beside those of ``faults``."""

import resource

from faults import act


def at_line(number, do):
    """``do`` before ``drloss predict`` adds the lines after its first ``number`` ones."""
    from drloss.inference.predicting.journal import Journal

    original, seen = Journal.append, 0

    def patched(self, records):
        nonlocal seen
        if seen >= number:
            act(do)
        seen += len(records)
        return original(self, records)

    Journal.append = patched


def half_a_line(number):
    """A kill in the middle of a line of ``drloss predict``, after its first ``number`` ones."""
    from drloss.inference.predicting.journal import Journal, line_of

    original, seen = Journal.append, 0

    def patched(self, records):
        nonlocal seen
        if seen >= number:
            self._file.write(line_of(records[0]).encode()[:-10])
            act("SIGKILL")
        seen += len(records)
        return original(self, records)

    Journal.append = patched


def killed_at(name):
    """The process that reads an image of this name for ``drloss predict`` is killed."""
    from drloss.inference.predicting import loading

    original = loading.see

    def patched(path, *more):
        if path.name == name:
            act("SIGKILL")
        return original(path, *more)

    loading.see = patched


def small_files(room):
    """No file may grow beyond ``room`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
