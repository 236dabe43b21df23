from pathlib import Path

from raysense.results.dictionary import dictionary


def test_the_page_of_tables_is_what_the_schema_says() -> None:
    assert (Path(__file__).parents[2] / "docs/reference/tables.md").read_text(
        encoding="utf-8"
    ) == dictionary()
