"""The model card of an export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from raysense.export.pack import RECORD, ZSTD_LEVEL
from raysense.results.run import Run

WHERE = {
    "validation": "held-out prompts that the search never saw",
    None: "nothing: this allocation was not judged by images",
}
"""Rung -> what an allocation was measured on."""

VERDICT = {True: "inside the quality budget", False: "**outside** the quality budget", None: "not judged"}

PLAIN = (
    'from diffusers import DiffusionPipeline\n\npipeline = DiffusionPipeline.from_pretrained("THIS_FOLDER")'
)
COMPRESSED = 'from raysense.export import load_compressed\n\npipeline = load_compressed("THIS_FOLDER")'

KERNELS = (
    "\nOn a CUDA device of capability 8.0 or more, `raysense.export.semi_structured.load_semi_structured` puts the "
    "layers that can on 2:4 kernels; `python -m benchmarks.semi_structured` measures what that buys.\n"
)

CARD = """---
library_name: diffusers
tags: [text-to-image, pruned, raysense]
---
# {pipeline}, pruned by raysense

**{of_components:.2%}** of the parameters of the studied components are zero
({of_prunable:.2%} of their Linear and Conv weights, {of_pipeline:.2%} of the whole
pipeline; {zeros:,} zeros, counted in the weights of this folder). Verdict: {verdict}.
Nothing was retrained. Zeros make the files smaller, not the pipeline faster: no speed was measured.

```python
{load}
```

## What was pruned

{removed}

By {method}; every layer's level and its zeros stand in `{record}`.
{kernels}
## Measured quality

On {where}. Names ending in `_drop` and `_rise` are differences to the dense pipeline from the same noise.

| measure | value | 95 % interval | images | extractor |
|---|---|---|---|---|
{measures}

The budget:

{bounds}

## Size of the weight files

| form | bytes | of dense |
|---|---|---|
{sizes}

zstd at level {zstd}. “compressed” is a bit mask and the values that stay; `raysense.export.expand` turns it
back into this pipeline bit for bit.

## How to reproduce

Study {study}, signature `{signature}`, allocation `{allocation}`, raysense
{version}. Save the lines below as `study.yaml`, then

```
python -m raysense.search study.yaml --out run
raysense export run --allocation {allocation} --out pruned
```

{definition}"""


def model_card(run: Run, record: Mapping[str, Any], compressed: bool) -> str:
    """A model card in Markdown.

    Texts that users chose stand in code spans, so that none of them is read as Markdown or HTML.

    Args:
        run: The study.
        record: What the export wrote about itself.
        compressed: Whether the weights are packed.
    """
    removed: Counter[str] = Counter()
    for layer, count in record["zeros_by_layer"].items():
        removed[layer.split(":")[0]] += count
    dense = record["bytes"]["dense"]
    return CARD.format(
        pipeline=_code(run.study.pipeline),
        of_components=record["sparsity_components"],
        of_prunable=record["sparsity_prunable"],
        of_pipeline=record["sparsity_pipeline"],
        zeros=record["zeros"],
        verdict=VERDICT[record["feasible"]],
        load=COMPRESSED if compressed else PLAIN,
        removed="\n".join(f"- {_code(name)}: {count:,} zeros" for name, count in removed.items()),
        method=_code(" ".join(part for part in (record["saliency"], record["pattern"]) if part)),
        record=RECORD,
        kernels=KERNELS if record["pattern"] == "2:4" else "",
        where=WHERE.get(record["rung"], "the search's own prompts"),
        measures="\n".join(_measure(name, measure) for name, measure in record["measures"].items()),
        bounds="\n".join(
            f"- `{bound.field}`: {'at most' if bound.is_upper else 'at least'} {bound.limit:g}"
            for bound in run.bounds
        ),
        sizes="\n".join(
            f"| {form} | {size:,} | {size / dense:.3f} |" for form, size in record["bytes"].items()
        ),
        zstd=ZSTD_LEVEL,
        study=_code(run.study.name),
        signature=record["signature"],
        allocation=record["allocation"],
        version=record["raysense_version"],
        definition=_indented(run.study.to_yaml()),
    )


def _measure(name: str, m: Mapping[str, Any]) -> str:
    """A row of the table of measures."""
    interval = f"{m['ci_low']:.4g} to {m['ci_high']:.4g}"
    return f"| {name} | {m['value']:.4g} | {interval} | {m['n']} | {_code(m['extractor'])} |"


def _code(text: str) -> str:
    """Any text as a Markdown code span on one line."""
    flat = " ".join(str(text).split()).replace("`", "'").replace("|", "¦")
    return f"`{flat}`"


def _indented(text: str) -> str:
    """A text as a Markdown code block that no fence inside it can end."""
    return "".join(f"    {line}\n" for line in text.splitlines())
