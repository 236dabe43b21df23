"""What a plug-in owes raysense, as checks that its author runs in tests of his own.

Each check calls the plug-in as raysense does, on small made-up data, on the CPU, in a few seconds, and raises an
`AssertionError` that says what is wrong.

Example:
    ```python
    from raysense.testing import check_metric
    from my_metrics import noise

    def test_noise():
        check_metric(noise)
    ```
"""

from raysense.testing.metrics import check_extractor, check_metric, noised
from raysense.testing.saliency import check_saliency
from raysense.testing.strategies import check_allocation_rule, check_strategy

__all__ = [
    "check_allocation_rule",
    "check_extractor",
    "check_metric",
    "check_saliency",
    "check_strategy",
    "noised",
]
