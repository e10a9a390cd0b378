import copy
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.data.formats.opening import open_data
from drloss.evaluation.coco import (
    METRICS,
    Evaluation,
    accumulate,
    evaluate,
    metrics_table,
    to_results,
    write_results,
)


def store(images, *, classes=2, ignore=(), size=(200, 200), areas=None):
    """Annotations of images given as lists of (label, x0, y0, x1, y1)."""
    rows = [row for image in images for row in image]
    boxes = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Annotations(
        name="made up",
        class_names=tuple(f"class {k}" for k in range(1, classes + 1)),
        category_ids=np.arange(classes, dtype=np.int64) * 10 + 7,
        image_ids=np.arange(len(images), dtype=np.int64) * 3 + 1000,
        image_names=np.array([b"x.png"] * len(images), dtype=np.bytes_),
        image_root=None,
        sizes=np.tile(np.array(size, dtype=np.int32), (len(images), 1)),
        first_box=np.cumsum([0, *(len(image) for image in images)]).astype(np.int64),
        boxes=boxes,
        labels=np.array([row[0] for row in rows], dtype=np.int64),
        ignore=np.array([m in ignore for m in range(len(rows))], dtype=np.bool_),
        areas=area if areas is None else areas,
    )


def found(*rows):
    """A detection of rows (label, score, x0, y0, x1, y1)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, 2:], "scores": table[:, 1], "labels": table[:, 0].long()}


# --- by hand ---------------------------------------------------------------------------------------------------


def test_a_perfect_detector_reaches_100_and_areas_without_objects_are_nan():
    annotations = store([[(1, 0, 0, 50, 50)], [(2, 10, 10, 20, 20)]])
    metrics = evaluate(annotations, [found((1, 0.9, 0, 0, 50, 50)), found((2, 0.3, 10, 10, 20, 20))]).metrics
    assert metrics | {"APl": None} == {"AP": 100, "AP50": 100, "AP75": 100, "APs": 100, "APm": 100, "APl": None}
    assert math.isnan(metrics["APl"])


def test_iou_of_0_6_counts_at_three_of_ten_thresholds():
    """A detection of 60 of an object's 100 columns: right at IoU .50, .55 and .60, wrong from .65 on."""
    metrics = evaluate(store([[(1, 0, 0, 100, 100)]], classes=1), [found((1, 0.9, 0, 0, 60, 100))]).metrics
    assert metrics["AP"] == pytest.approx(30)
    assert (metrics["AP50"], metrics["AP75"]) == (100, 0)


def test_a_false_positive_above_halves_the_precision_and_one_below_costs_nothing():
    annotations = store([[(1, 0, 0, 50, 50)]], classes=1)
    right, wrong = (1, 0.5, 0, 0, 50, 50), (100, 100, 150, 150)
    assert evaluate(annotations, [found((1, 0.9, *wrong), right)]).metrics["AP"] == pytest.approx(50)
    assert evaluate(annotations, [found(right, (1, 0.1, *wrong))]).metrics["AP"] == pytest.approx(100)


def test_half_the_objects_found_gives_51_of_101_recall_points():
    annotations = store([[(1, 0, 0, 50, 50), (1, 100, 100, 150, 150)]], classes=1)
    evaluation = evaluate(annotations, [found((1, 0.9, 0, 0, 50, 50))])
    assert evaluation.metrics["AP"] == pytest.approx(100 * 51 / 101)
    np.testing.assert_array_equal(evaluation.precision[0], (evaluation.recall_points <= 0.5).astype(float))


def test_the_mean_over_classes_leaves_out_a_class_without_objects():
    annotations = store([[(1, 0, 0, 50, 50)]], classes=2)
    evaluation = evaluate(annotations, [found((1, 0.9, 0, 0, 50, 50), (2, 0.9, 0, 0, 50, 50))])
    assert evaluation.metrics["AP"] == 100
    assert evaluation.per_class["class 1"]["AP"] == 100
    assert math.isnan(evaluation.per_class["class 2"]["AP"])
    assert (evaluation.precision[1] == -1).all()


def test_a_detection_on_a_crowd_is_neither_right_nor_wrong():
    images = [[(1, 0, 0, 50, 50), (1, 100, 100, 200, 200)]]
    detections = [found((1, 0.95, 110, 110, 150, 150), (1, 0.9, 0, 0, 50, 50))]
    assert evaluate(store(images, ignore={1}), detections).metrics["AP"] == pytest.approx(100)
    assert evaluate(store(images), detections).metrics["AP"] == pytest.approx(100 * 51 / 101 * 0.5)


def test_size_is_the_area_of_the_annotations_not_of_the_boxes():
    boxes = [[(1, 0, 0, 100, 100)]]
    assert not math.isnan(evaluate(store(boxes), [found()]).metrics["APl"])
    masked = evaluate(store(boxes, areas=np.array([900.0])), [found()]).metrics
    assert math.isnan(masked["APl"])
    assert masked["APs"] == 0


def test_the_first_box_of_the_first_image_can_be_matched():
    """An annotation id of 0 would read as "not matched"."""
    assert evaluate(store([[(1, 0, 0, 9, 9)]]), [found((1, 1.0, 0, 0, 9, 9))]).metrics["AP"] == 100


# --- limits ----------------------------------------------------------------------------------------------------


def test_nothing_found_is_zero_and_nothing_to_find_is_nan():
    assert evaluate(store([[(1, 0, 0, 9, 9)], []]), [found(), found()]).metrics["AP"] == 0
    for annotations in (store([[], []]), store([])):
        evaluation = evaluate(annotations, [found((1, 0.5, 0, 0, 9, 9))] * len(annotations))
        assert all(math.isnan(v) for v in evaluation.metrics.values())
        assert evaluation.precision.shape == (2, 101)


def test_an_empty_box_is_a_false_positive():
    annotations = store([[(1, 0, 0, 50, 50)]], classes=1)
    metrics = evaluate(annotations, [found((1, 0.9, 20, 20, 20, 20), (1, 0.5, 0, 0, 50, 50))]).metrics
    assert metrics["AP"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([], "1 images, got detections of 0"),
        ([found(), found()], "1 images, got detections of 2"),
        ([found((1, math.nan, 0, 0, 1, 1))], "image 0 .* 1 of 1 scores are not finite"),
        ([found((1, math.inf, 0, 0, 1, 1))], "image 0 .* 1 of 1 scores are not finite"),
        ([found((1, 0.5, 0, math.inf, 1, 1))], "boxes must be finite"),
        ([found((1, 0.5, math.nan, 0, 1, 1))], "boxes must be finite"),
        ([found((1, 0.5, 9, 0, 1, 1))], "boxes must have x1 <= x2 and y1 <= y2"),
        ([found((0, 0.5, 0, 0, 1, 1))], r"labels must be in 1\.\.2, got 0\.\.0"),
        ([found((3, 0.5, 0, 0, 1, 1))], r"got 3\.\.3"),
        ([found((1, 0.5, 0, 0, 1, 1)) | {"scores": torch.zeros(2)}], r"got \(1, 4\), \(2,\) and \(1,\)"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(detections, message):
    with pytest.raises(ValueError, match=message):
        evaluate(store([[(1, 0, 0, 9, 9)]]), detections)


def test_evaluation_prints_nothing(capfd):
    evaluate(store([[(1, 0, 0, 9, 9)]]), [found((1, 0.5, 0, 0, 9, 9))])
    assert capfd.readouterr() == ("", "")


# --- against the reference ----------------------------------------------------------------------------------------


def random_case(seed):
    """A small data set with crowds, tied scores, empty images, a class without objects and crowded images."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 5))
    images, detections = [], []
    for _ in range(int(rng.integers(1, 6))):
        count = int(rng.integers(0, 12)) if rng.random() > 0.2 else 0
        # The last class has no objects in a third of the cases.
        most = max(1, classes - (seed % 3 == 0))
        corner = rng.uniform(0, 300, (count, 2))
        side = np.exp(rng.uniform(np.log(5), np.log(250), (count, 2)))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(1, most + 1, count)
        images.append([(int(k), *box) for k, box in zip(labels, boxes, strict=True)])
        extra = 130 if rng.random() < 0.1 else int(rng.integers(0, 8))
        guesses = np.concatenate(
            [boxes + rng.normal(0, 6, boxes.shape), rng.uniform(0, 200, (extra, 4)).cumsum(axis=1)]
        )
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2])
        keep = rng.random(len(guesses)) < 0.85
        guessed = np.concatenate([labels, rng.integers(1, classes + 1, extra)])
        scores = rng.random(len(guesses)).round(1 if seed % 2 else 6)
        table = np.concatenate([guessed[:, None], scores[:, None], guesses], axis=1)[keep]
        detections.append(found(*table.tolist()))
    boxes = sum(len(image) for image in images)
    crowds = set(rng.permutation(boxes)[: boxes // 6].tolist())
    areas = rng.uniform(10, 20000, boxes)
    at_border = rng.random(boxes) < 0.2
    areas[at_border] = rng.choice([32.0**2, 96.0**2, np.nextafter(32.0**2, 0), np.nextafter(96.0**2, 1e9)], boxes)[
        at_border
    ]
    return store(images, classes=classes, ignore=crowds, size=(600, 600), areas=areas), detections


def pycocotools():
    """Its classes COCO and COCOeval; without it, the test is skipped."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    return coco.COCO, pytest.importorskip("pycocotools.cocoeval").COCOeval


def reference(annotations, detections):
    """Precision, recall and the 12 numbers of pycocotools, from the files' own ids and COCO's results format."""
    COCO, COCOeval = pycocotools()
    truth = COCO()
    image_of_box = np.repeat(annotations.image_ids, np.diff(annotations.first_box))
    truth.dataset = {
        "info": {},
        "images": [{"id": int(i), "height": 600, "width": 600} for i in annotations.image_ids],
        "categories": [{"id": int(k), "name": str(k)} for k in annotations.category_ids],
        "annotations": [
            {
                "id": m + 1,
                "image_id": int(image_of_box[m]),
                "category_id": int(annotations.category_ids[annotations.labels[m] - 1]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(annotations.areas[m]),
                "iscrowd": int(annotations.ignore[m]),
            }
            for m, (x0, y0, x1, y1) in enumerate(annotations.boxes.tolist())
        ],
    }
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(to_results(annotations, detections)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def twelve(precision, recall):
    """COCO's 12 numbers, -1 where undefined: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl."""
    parts = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
    parts += [precision[..., area, 2] for area in (1, 2, 3)]
    parts += [recall[..., 0, most] for most in (0, 1, 2)] + [recall[..., area, 2] for area in (1, 2, 3)]
    return [part[part > -1].mean() if (part > -1).any() else -1.0 for part in parts]


@pytest.mark.soak
@pytest.mark.parametrize("block", range(4))
def test_all_twelve_numbers_equal_those_of_pycocotools(block, soak, figure, capfd):
    """100 random data sets, or 1,000; the differences allowed for are listed below, and none of them occurs here."""
    count = 250 if soak else 25
    compared, largest = 0, 0.0
    for seed in range(count * block, count * (block + 1)):
        annotations, detections = random_case(seed)
        if sum(len(d["scores"]) for d in detections) == 0:
            continue  # one of the differences
        expected = reference(annotations, detections).stats
        stats = twelve(*accumulate(annotations, detections))
        np.testing.assert_allclose(stats, expected, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        largest = max(largest, np.abs(np.subtract(stats, expected)).max())
        ours = [evaluate(annotations, detections).metrics[m] for m in METRICS]
        shown = [math.nan if v == -1 else 100 * v for v in expected[:6]]
        np.testing.assert_allclose(ours, shown, rtol=0, atol=1e-7, err_msg=f"seed {seed}")
        compared += 1
    assert compared >= 0.9 * count
    figure("T20", f"{compared:,} data sets, all 12 numbers within {largest:.1e} of pycocotools")


# --- where the reference answers otherwise: the list stands in drloss.evaluation.coco ----------------------------


def files_of(annotations, detections):
    """A COCO file and a results file, as plain values."""
    evaluator = reference(annotations, detections)
    return copy.deepcopy(evaluator.cocoGt.dataset), to_results(annotations, detections)


def average_precision(truth, results):
    """pycocotools' AP of a file and its results, in percent."""
    COCO, COCOeval = pycocotools()
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return 100 * evaluator.stats[0]


PERFECT = ([[(1, 0, 0, 50, 50)], [(1, 20, 20, 90, 90)]], [(1, 0.9, 0, 0, 50, 50)], [(1, 0.8, 20, 20, 90, 90)])


def test_an_annotation_id_of_0_is_missed_by_the_reference_alone(capfd, tmp_path):
    images, first, second = PERFECT
    annotations, detections = store(images, classes=1), [found(*first), found(*second)]
    truth, results = files_of(annotations, detections)
    assert average_precision(copy.deepcopy(truth), results) == pytest.approx(100)
    truth["annotations"][0]["id"] = 0
    assert average_precision(truth, results) < 60
    # Read from that very file, the ids play no part.
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
    (tmp_path / "train.json").write_text(json.dumps(truth))
    read = open_data(tmp_path).read("train")[0]
    assert evaluate(read, detections).metrics["AP"] == 100


def test_an_annotation_id_given_twice_is_lost_by_the_reference_alone(capfd, tmp_path):
    images, first, second = PERFECT
    annotations, detections = store(images, classes=1), [found(*first), found(*second)]
    truth, results = files_of(annotations, detections)
    truth["annotations"][1]["id"] = 1
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
    (tmp_path / "train.json").write_text(json.dumps(truth))
    assert average_precision(truth, results) < 90
    assert evaluate(open_data(tmp_path).read("train")[0], detections).metrics["AP"] == 100


def test_a_nan_score_is_ranked_by_the_reference_and_refused_here(capfd):
    images, first, _ = PERFECT
    annotations, detections = store(images, classes=1), [found(*first), found((1, 0.8, 20, 20, 90, 90))]
    truth, results = files_of(annotations, detections)
    results[0]["score"] = math.nan
    assert 0 <= average_precision(truth, results) <= 100
    detections[0]["scores"][0] = math.nan
    with pytest.raises(ValueError, match="scores are not finite"):
        evaluate(annotations, detections)


def test_no_detection_at_all_stops_the_reference_and_is_0_here(capfd):
    annotations = store(PERFECT[0], classes=1)
    truth, _ = files_of(annotations, [found(), found((1, 0.1, 0, 0, 9, 9))])
    with pytest.raises(IndexError):
        average_precision(truth, [])
    assert evaluate(annotations, [found(), found()]).metrics["AP"] == 0


def test_a_detection_of_an_unknown_class_is_passed_over_by_the_reference_and_refused_here(capfd):
    images, first, second = PERFECT
    annotations, detections = store(images, classes=1), [found(*first), found(*second)]
    truth, results = files_of(annotations, detections)
    results[0]["category_id"] = 999
    assert average_precision(truth, results) < 60
    detections[0]["labels"][0] = 2
    with pytest.raises(ValueError, match=r"labels must be in 1\.\.1, got 2\.\.2"):
        evaluate(annotations, detections)


def test_a_reversed_box_is_counted_by_the_reference_and_refused_here(capfd):
    images, first, second = PERFECT
    annotations, detections = store(images, classes=1), [found(*first), found(*second)]
    truth, results = files_of(annotations, detections)
    results[0]["bbox"] = [50, 50, -50, -50]
    assert 0 <= average_precision(truth, results) <= 100
    detections[0]["boxes"][0] = torch.tensor([50.0, 50.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="boxes must have x1 <= x2 and y1 <= y2"):
        evaluate(annotations, detections)


def test_per_class_numbers_are_those_of_that_class_alone():
    annotations, detections = random_case(2)
    whole = evaluate(annotations, detections)
    assert len(annotations.class_names) > 1
    for label, name in enumerate(annotations.class_names, start=1):
        hidden = replace(annotations, ignore=annotations.ignore | (annotations.labels != label))
        np.testing.assert_allclose(
            list(evaluate(hidden, detections).metrics.values()), list(whole.per_class[name].values())
        )


# --- files -------------------------------------------------------------------------------------------------------


def test_results_have_the_files_own_ids_and_xywh_boxes(tmp_path):
    annotations = store([[], [(2, 0, 0, 9, 9)]])
    detections = [found(), found((2, 0.5, 10, 20, 40, 60))]
    expected = [{"image_id": 1003, "category_id": 17, "bbox": [10, 20, 30, 40], "score": 0.5}]
    assert to_results(annotations, detections) == expected
    write_results(tmp_path / "results.json", annotations, detections)
    assert json.loads((tmp_path / "results.json").read_text()) == expected
    write_results(tmp_path / "none.json", annotations, [found(), found()])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_json_has_null_for_nan_and_comes_back_the_same():
    evaluation = evaluate(store([[(1, 0, 0, 50, 50)]]), [found((1, 0.9, 0, 0, 40, 50))])
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    assert json.loads(text)["metrics"]["APl"] is None
    again = Evaluation.from_json(json.loads(text))
    np.testing.assert_equal(again.metrics, evaluation.metrics)
    np.testing.assert_equal(again.per_class, evaluation.per_class)
    np.testing.assert_array_equal(again.precision, evaluation.precision)


def test_the_table_shows_every_class_as_it_is_named():
    annotations = replace(store([[(1, 0, 0, 50, 50)]]), class_names=("[bold]cat[/]", "all"))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(metrics_table(evaluate(annotations, [found((1, 0.9, 0, 0, 50, 50))])))
    rows = [line.split("│") for line in console.export_text().splitlines() if "│" in line]
    shown = {row[1].strip(): [cell.strip() for cell in row[2:8]] for row in rows}
    assert shown["[bold]cat[/]"] == ["100.0", "100.0", "100.0", "–", "100.0", "–"]
    assert [row[1].strip() for row in rows] == ["all", "[bold]cat[/]", "all"]
