"""The report of a run as JSON, as text and as one HTML page."""

import base64
import dataclasses
import html.parser
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from model import metrics
from pipelines import report
from pipelines.report import ReportSource, Thumbnail

VOID = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    """What a page holds: its text, tags and attributes, and whether every element is closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def source(classes=("sound", "crack"), rows=400, label=True, seed=0, **changes):
    """A run over random images whose classes, save for noise, are predicted rightly; also the counted arrays."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(len(classes), size=rows)
    logits = generator.normal(size=(rows, len(classes))) + 2.5 * np.eye(len(classes))[truth]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    predicted = probabilities.argmax(axis=1)
    labels = [classes[index] if label else None for index in truth]
    values = {
        "run": {"input": "in/*.tar", "engine": "litert", "model": {"path": "bundle", "fingerprint": "ab12"}},
        "classes": tuple(classes),
        "positive_class": classes[1],
        "counts": metrics.count(classes, labels, predicted, probabilities),
        "images": rows,
        "predictions": rows,
        "failures": 0,
        "failure_codes": {},
        "units": 2,
        "unit_failures": (),
        "seconds": 4.0,
    }
    return ReportSource(**{**values, **changes}), truth, predicted


def built(**options):
    """The report as a reader of report.json has it."""
    return json.loads(json.dumps(report.build_report(source(**options)[0]), allow_nan=False))


def jpeg():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(stream, "JPEG")
    return stream.getvalue()


def thumbnail(image_id="a.jpg", label="sound", predicted="crack", score=0.9):
    return Thumbnail(image_id, label, predicted, score, jpeg())


def assert_self_contained(page):
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in {"href", "srcset", "action", "data", "background"}, name
        if name == "src":
            assert value.startswith("data:image/jpeg;base64,")


def test_json_holds_the_facts_and_is_deterministic():
    values = built(failures=3, images=403, failure_codes={"decode/truncated": 2, "decode/empty": 1})
    assert (values["images"], values["predictions"], values["failures"]) == (403, 400, 3)
    assert list(values["failure_codes"]) == ["decode/empty", "decode/truncated"]
    assert values["images_per_second"] == pytest.approx(100.8)
    assert sum(values["score_histogram"]) == sum(bin_["count"] for bin_ in values["calibration"]) == 400
    again = built(failures=3, images=403, failure_codes={"decode/empty": 1, "decode/truncated": 2})
    assert json.dumps(values) == json.dumps(again)


def test_counts_that_are_not_of_this_run_are_refused():
    with pytest.raises(ValueError, match="401 predictions"):
        report.build_report(source(predictions=401)[0])
    with pytest.raises(ValueError, match="the report of"):
        report.build_report(dataclasses.replace(source()[0], classes=("crack", "sound")))


def test_text_of_a_labelled_run():
    values = built(
        failures=3,
        images=403,
        failure_codes={"decode/truncated": 2, "decode/empty": 1},
        unit_failures=[("part-7.tar", "cut after\n3 images")],
    )
    text = report.render_text(values)
    matrix = values["metrics"]["confusion_matrix"]
    assert re.search(rf"^sound\s+{matrix[0][0]}\s+{matrix[0][1]}$", text, re.MULTILINE)
    assert re.search(rf"^crack\s+{matrix[1][0]}\s+{matrix[1][1]}$", text, re.MULTILINE)
    assert text.startswith("403 images in 2 work units. 400 were classified; 3 failed. Of 400 labelled images, ")
    assert "1 shard could not be read to the end." in text
    assert re.search(r"decode/truncated +2 +66\.67 %  #{40}$", text, re.MULTILINE)
    assert "part-7.tar: cut after\N{REPLACEMENT CHARACTER}3 images" in text


def test_large_numbers_are_grouped():
    text = report.render_text(built(rows=12056))
    assert text.startswith("12,056 images in")
    page = Page(report.render_html(built(rows=12056), []))
    assert "12,056 images" in page.text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.00 %"), (0.99999, ">99.99 %"), (0.0, "0.00 %"), (0.00001, "<0.01 %"), (0.5, "50.00 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share, text):
    assert report.report_page.percent(share) == text


def test_an_unlabelled_run_shows_no_measure_of_quality():
    values = built(label=False)
    text = report.render_text(values)
    page = Page(report.render_html(values, [thumbnail(label=None, score=0.51)]))
    for shown in (text.lower(), page.text.lower()):
        assert "so accuracy is not known" in shown
        for word in ("precision", "recall", "f1", "auc", "confusion", "mistake", "calibration", "none", "nan"):
            assert not re.search(rf"\b{word}", shown), word
    found = values["metrics"]["predicted"]["crack"]
    assert re.search(rf"crack +{found} +{found / 4:.2f} %  #+$", text, re.MULTILINE)
    assert "0.9 to 1.0" in text
    assert "Least certain images" in page.text
    assert "score 0.5100" in page.text


def test_labels_that_no_model_class_has_are_shown_and_not_measured():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], np.float32)
    counts = metrics.count(("sound", "crack"), ["sound", "moss", None], np.array([0, 1, 1]), probabilities)
    values = built(counts=counts, images=3, predictions=3)
    for shown in (report.render_text(values), Page(report.render_html(values, [])).text):
        assert "Of 1 labelled image, 100.00 % were classified correctly" in shown
        assert "Not in the metrics: 1 image labelled moss; the model's classes are sound, crack." in shown
        assert "Not in the metrics: 1 image without a label." in shown
        assert "moss" in shown


def test_page_is_self_contained_and_shows_the_mistakes_by_score():
    shown = [
        thumbnail("low.jpg", score=0.6),
        thumbnail("right.jpg", label="crack", score=0.99),
        thumbnail("high.jpg", score=0.97),
    ]
    text = report.render_html(built(), shown)
    page = Page(text)
    assert_self_contained(page)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert page.text.index("high.jpg") < page.text.index("low.jpg")
    assert "right.jpg" not in page.text
    sources = [value for name, value in page.attributes if name == "src"]
    assert base64.b64decode(sources[0].split(",")[1]) == jpeg()
    assert page.tags.count("svg") == 4
    for heading in ("Results by class", "Confusion matrix", "ROC of crack", "Calibration", "Provenance"):
        assert heading in page.text
    assert "model, fingerprint ab12" in page.text


def test_plots_stay_inside_their_frames():
    text = report.render_html(built(), [])
    pairs = " ".join(re.findall(r'points="([^"]+)"', text)).split()
    points = [tuple(map(float, pair.split(","))) for pair in pairs]
    assert len(points) > 50
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_everything_from_outside_is_escaped():
    evil = "<script>alert(1)</script>"
    quoted = '"><img src=x onerror=alert(1)>'
    values = built(
        classes=(quoted, evil),
        run={"input": evil, "model": {"path": quoted, "classes": [evil]}, evil: quoted},
        images=401,
        failures=1,
        failure_codes={evil: 1},
        unit_failures=[(evil, quoted)],
    )
    text = report.render_html(values, [Thumbnail(quoted, quoted, evil, 0.9, b"<script>")])
    page = Page(text)
    assert_self_contained(page)
    assert text.count("<script") == 0
    assert text.count("<img") == 1
    assert page.text.count(evil) >= 8
    unknown = metrics.count((quoted, evil), [evil + "2"], np.array([0]), np.array([[1.0, 0.0]], np.float32))
    values = built(classes=(quoted, evil), counts=unknown, images=1, predictions=1)
    assert values["metrics"]["unknown"] == 1
    assert "<script" not in report.render_html(values, [])


def test_names_that_are_no_utf8_or_hold_terminal_codes():
    values = built(run={"input": "folder\udce9"}, unit_failures=[("\x1b[2Jshard", "gone")])
    assert "folder?" in Page(report.render_html(values, [])).text
    report.render_html(values, []).encode()
    assert "\x1b" not in report.render_text(values)


def test_an_empty_run_renders():
    values = built(rows=0, units=0, seconds=0.0)
    assert values["images_per_second"] is None
    assert report.render_text(values).startswith("0 images in 0 work units.\n")
    page = Page(report.render_html(values, []))
    assert "0 images in 0 work units." in page.text
    assert "svg" not in page.tags


def test_many_classes_long_names_and_classes_without_images():
    classes = (*(f"class {index}" for index in range(10)), "x" * 255, "line\nbreak")
    labels = ["class 0", "x" * 255]
    counts = metrics.count(classes, labels, np.array([0, 11]), np.full((2, 12), 1 / 12, np.float32))
    values = built(classes=classes, counts=counts, images=2, predictions=2)
    lines = report.render_text(values).splitlines()
    assert max(map(len, lines)) <= 140
    assert any(line.startswith("[11] xxxxx") and "…" in line for line in lines)
    table = [line for line in lines if line.endswith((" 0", " 1", " 2")) and "0." in line]
    assert len({len(line) for line in table}) == 1
    page = Page(report.render_html(values, []))
    assert "[12] line break" in page.text
    assert "class 4 0.0000 0.0000 0.0000 0" in page.text
    assert "recall of" not in page.text
    assert "recall of crack" in Page(report.render_html(built(), [])).text


def test_only_one_class_labelled_has_no_curves():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    counts = metrics.count(("sound", "crack"), ["crack", "crack"], np.array([0, 1]), probabilities)
    values = built(counts=counts, images=2, predictions=2)
    page = Page(report.render_html(values, []))
    assert "ROC" not in page.text
    assert page.tags.count("svg") == 2
    assert "ROC AUC" not in report.render_text(values)


def test_report_and_query_need_neither_tensorflow_nor_beam_nor_matplotlib():
    code = (
        "import sys, pipelines.report, pipelines.query, model.metrics\n"
        "print(sorted({'tensorflow', 'keras', 'apache_beam', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
