import numpy as np
import pytest

from drloss.evaluation.matching import match_detections
from drloss.evaluation.mistakes import BADLY_PLACED, DOUBLE, FALSE, KINDS, MISSED, WRONG_CLASS, find_mistakes
from evaluation.test_coco import found, random_case, store

AT = (0, 0, 10, 10)
FAR = (100, 100, 110, 110)


def kinds(objects, *detections, threshold=0.5, **how):
    mistakes = find_mistakes(store([objects], **how), [found(*detections)], threshold)
    return [m.kind for m in mistakes.all], mistakes.confusion.tolist()


# The rows of the confusion matrix are the objects of class 1, of class 2, and no object.


def test_a_right_detection_is_no_mistake():
    assert kinds([(1, *AT)], (1, 0.9, *AT)) == ([], [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_an_object_without_a_detection_is_missed():
    assert kinds([(2, *AT)]) == ([MISSED], [[0, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_a_detection_below_the_threshold_is_none():
    assert kinds([(2, *AT)], (2, 0.4, *AT))[0] == [MISSED]
    assert kinds([(2, *AT)], (2, 0.4, *AT), threshold=0.4)[0] == []


def test_a_detection_on_an_object_of_another_class_is_a_wrong_class_and_the_object_not_missed():
    assert kinds([(1, *AT)], (2, 0.9, *AT)) == ([WRONG_CLASS], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_a_second_detection_on_a_found_object_is_double_or_of_the_wrong_class():
    assert kinds([(1, *AT)], (1, 0.9, *AT), (1, 0.8, *AT)) == ([DOUBLE], [[1, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert kinds([(1, *AT)], (1, 0.6, *AT), (2, 0.9, *AT)) == ([WRONG_CLASS], [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_a_detection_near_its_object_is_badly_placed_and_the_object_not_also_missed():
    """IoU 4/10 of the same class is near; of another class it is on no object."""
    near = (0, 0, 10, 4)
    assert kinds([(1, *AT)], (1, 0.9, *near)) == ([BADLY_PLACED], [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert kinds([(1, *AT)], (2, 0.9, *near))[0] == [FALSE, MISSED]


def test_a_detection_on_nothing_is_false():
    assert kinds([(1, *AT)], (1, 0.9, *AT), (2, 0.9, *FAR)) == ([FALSE], [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_crowds_are_neither_missed_nor_mistaken():
    """A crowd of the own class swallows detections; one of another class is on no object, as in COCO's rules."""
    assert kinds([(1, *AT)], (1, 0.9, *AT), (1, 0.8, *AT), ignore=(0,)) == ([], np.zeros((3, 3), int).tolist())
    assert kinds([(1, *AT)], (2, 0.9, *AT), ignore=(0,))[0] == [FALSE]


@pytest.mark.parametrize("seed", range(20))
def test_the_matrix_counts_every_object_and_every_detection_once(seed):
    annotations, detections = random_case(seed)
    for threshold in (0.0, 0.5):
        mistakes = find_mistakes(annotations, detections, threshold)
        above = [{k: v[d["scores"] >= threshold] for k, v in d.items()} for d in detections]
        matches = match_detections(annotations, above)
        own = annotations.labels[~annotations.ignore]
        classes = len(annotations.class_names)
        assert mistakes.confusion[:-1].sum(axis=1).tolist() == np.bincount(own - 1, minlength=classes).tolist()
        counted = matches.label[matches.counted[0]]
        assert mistakes.confusion[:, :-1].sum(axis=0).tolist() == np.bincount(counted - 1, minlength=classes).tolist()
        right = matches.label[matches.found[0]]
        assert np.diag(mistakes.confusion)[:-1].tolist() == np.bincount(right - 1, minlength=classes).tolist()
        wrong = sum(m.score is not None for m in mistakes.all)
        assert wrong == len(counted) - len(right)
        assert {m.kind for m in mistakes.all} <= set(KINDS)


def test_the_worst_are_of_different_images_and_classes_first():
    annotations = store([[], []])
    first = found((1, 0.9, *AT), (1, 0.8, *FAR), (2, 0.7, *FAR))
    mistakes = find_mistakes(annotations, [first, found((1, 0.6, *AT))], 0.5)
    worst = mistakes.worst(FALSE, 4)
    assert [m.score for m in worst] == pytest.approx([0.9, 0.7, 0.6, 0.8])
    assert mistakes.worst(FALSE, 2) == worst[:2]
    assert mistakes.worst(MISSED, 2) == []


def test_missed_objects_come_by_their_size():
    mistakes = find_mistakes(store([[(1, 0, 0, 10, 10)], [(1, 0, 0, 20, 80)]]), [found(), found()], 0.5)
    assert [m.weight for m in mistakes.worst(MISSED, 2)] == [40, 10]
