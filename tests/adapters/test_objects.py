"""Which object an anchor belongs to, where a host tells only the box that it is to find."""

import pytest
import torch
from torch import nn

import small_hosts
from drloss import adapters
from drloss.adapters.classifier import objects_of_boxes
from small_hosts import HOSTS

pytestmark = pytest.mark.filterwarnings("ignore")
"""Hosts warn of much that is their own."""


def test_anchors_with_the_same_box_and_class_are_of_one_object():
    box, other = [0.0, 0, 4, 4], [1.0, 1, 5, 5]
    boxes = torch.tensor([[box, other, box, box, other], [other, other, box, box, box]])
    labels = torch.tensor([[1, 2, 1, 3, 0], [2, 2, -1, 0, 1]])
    found = objects_of_boxes(boxes, labels)
    assert (found[labels <= 0] == -1).all()
    first, second, third, fourth, _ = found[0].tolist()
    assert first == third
    assert len({first, second, fourth}) == 3  # the same box with another class is another object
    assert found[1, 0] == found[1, 1] != found[1, 4]


def test_objects_are_counted_in_each_image():
    boxes = torch.arange(3 * 50.0).view(3, 50, 1).expand(3, 50, 4)
    assert objects_of_boxes(boxes, torch.ones(3, 50, dtype=torch.int64)).max() == 49


def test_a_tolerance_joins_boxes_that_rounding_has_moved_apart():
    boxes = torch.tensor([[10.5, 0, 20.5, 9], [10.499, 0, 20.501, 9], [11, 0, 20.5, 9]]).unsqueeze(0)
    labels = torch.ones(1, 3, dtype=torch.int64)
    first, second, third = objects_of_boxes(boxes, labels, tolerance=0.05)[0].tolist()
    assert first == second != third


@pytest.mark.parametrize("name", ["yolov8", "yolo26"])
def test_a_batch_of_ultralytics_without_objects_trains(name):
    host = HOSTS[name]
    model = adapters.adapt(host.make(), "dr+")
    batch = {key: value if key == "img" else value[:0] for key, value in host.batch().items()}
    sum(host.step(model, batch).values()).backward()


def test_a_detector_of_monai_that_is_refused_is_left_as_it_was():
    model = small_hosts.monai(2)
    own = type(model)
    model.network.classification_head = nn.Sequential(model.network.classification_head)
    with pytest.raises(ValueError, match="no classification_head of MONAI's"):
        adapters.adapt(model)
    assert type(model) is own
    assert not hasattr(model, "drloss")
    assert adapters.adapt(model, reset=False).drloss.prior_probability == 0.5
