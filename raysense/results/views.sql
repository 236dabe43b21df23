-- Views that the queries in reports/queries share; they stand on the tables of one study.

-- The quality budget: one row a bound.
CREATE VIEW bounds AS
SELECT unnest(
    from_json(bounds, '[{"field": "VARCHAR", "metric": "VARCHAR", "is_upper": "BOOLEAN", "bound": "DOUBLE"}]'),
    recursive := true
)
FROM studies;

-- Every allocation judged by images: who proposed it, how sparse it is, whether every interval clears its bound.
CREATE VIEW verdicts AS
SELECT
    key, allocation, rung, stage, trial, strategy, zeros, zeros / n_components AS sparsity_components, feasible,
    constraint_utilisation
FROM evaluations
WHERE failed = '' AND rung IN ('preview', 'score', 'validation');

-- Sensitivity: what removing so many weights of one group alone does; one row a level and metric. `sparsity` is the
-- share of the group's own weights.
CREATE VIEW curves AS
WITH sizes AS (
    SELECT "group", sum(weights)::BIGINT AS weights FROM layers GROUP BY "group"
)
SELECT
    l."group", min(l.component) AS component, e.key, sum(a.zeros)::BIGINT AS zeros, any_value(s.weights) AS weights,
    sum(a.zeros) / any_value(s.weights) AS sparsity, m.metric,
    any_value(m.value) AS damage, any_value(m.ci_low) AS ci_low, any_value(m.ci_high) AS ci_high, any_value(m.n) AS n
FROM evaluations e
JOIN measures m USING (key)
JOIN allocations a ON a.allocation = e.allocation
JOIN layers l ON l.layer = a.layer
JOIN sizes s ON s."group" = l."group"
WHERE e.failed = '' AND (
    e.stage = 'sensitivity'
    -- What a sweep has probed of a group alone, as the study itself prunes, is its curve too.
    OR (e.key, l."group") IN (
        SELECT key, groups FROM points
        WHERE rung = 'probe' AND rule = 'uniform' AND steps_from IS NULL
            AND method = (SELECT any_value(definition::JSON->'prune'->>'saliency') FROM studies)
    )
)
GROUP BY l."group", e.key, m.metric;
