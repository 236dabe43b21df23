from pathlib import Path

from raysense.results.dictionary import dictionary


def test_reports_readme_is_what_the_schema_says() -> None:
    assert (Path(__file__).parents[2] / "reports" / "README.md").read_text() == dictionary()
