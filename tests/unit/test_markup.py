"""What the back office's markup is made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aio_agentapi.sandbox._markup import Html, join, tag


def test_what_is_no_markup_is_escaped() -> None:
    """In content and in attributes."""
    written = tag("p", "<b> & \"'", title="\"><script>'")
    assert written == (
        '<p title="&quot;&gt;&lt;script&gt;&#x27;">&lt;b&gt; &amp; &quot;&#x27;</p>'
    )


def test_markup_is_kept() -> None:
    """Of elements, also after they were joined."""
    assert tag("p", tag("b", "x"), None, 5) == "<p><b>x</b>5</p>"
    assert join(tag("b", "x"), "<") == "<b>x</b>&lt;"
    assert tag("p", f"{tag('b', 'x')}!") == "<p>&lt;b&gt;x&lt;/b&gt;!</p>"


def test_attributes_are_left_out_or_bare() -> None:
    """None and False; True; names with dashes, and those that Python has taken."""
    written = tag("input", class_="x", data_live="y", hidden=True, alt=None, min=0)
    assert written == '<input class="x" data-live="y" hidden min="0">'
    assert tag("input", required=False) == "<input>"


@given(st.text())
def test_no_text_ends_what_it_is_in(text: str) -> None:
    """Whatever is in it."""
    written = tag("p", text, title=text)
    assert isinstance(written, Html)
    assert written.count("<") == written.count(">") == 2
    assert written.count('"') == 2
