from benchmarks.page import DOCS, newest, page


def test_the_page_of_speeds_is_that_of_the_records():
    assert (DOCS / "speed.md").read_text() == page(newest())
