"""A study's page with pictures, painted in a process of its own: whoever asks for it never holds the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysense.child_process import Child, Say, Tell, answer
from raysense.results.page import write_page


def write_painted_page(uri: str, tell: Tell, *, images: int = 6) -> str:
    """Write the page, with pictures, of a study that just ran here; return its path; see `page.write_page`.

    Args:
        uri: The study's folder or address.
        tell: Called with a line every few seconds.
        images: Prompts in the picture table.

    Raises:
        RaysenseError: There is no study, what is there is damaged, or the pipeline cannot be had.
    """
    with Child(__name__, {"uri": uri, "images": images}) as child:
        path: str = child.awaited("page", tell, "Loading the pipeline to paint with …")
        return path


def main(order: Mapping[str, Any], say: Say) -> None:
    """Paints, and says where the page is."""
    page = write_page(
        order["uri"], images=order["images"], code=True, tell=lambda text: say("progress", text)
    )
    say("page", page)


if __name__ == "__main__":
    answer(main)
