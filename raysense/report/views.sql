-- Views that the queries in reports/queries share; they stand on the tables of one study.

-- The quality budget: one row a bound.
CREATE VIEW bounds AS
WITH metrics AS (
    SELECT constraints, unnest(json_keys(constraints)) AS name
    FROM (SELECT json_extract(definition, '$.constraints') AS constraints FROM studies)
),
fields AS (
    SELECT name, json_extract(constraints, '$.' || name) AS limits, unnest(json_keys(json_extract(constraints, '$.' || name))) AS field
    FROM metrics WHERE json_type(json_extract(constraints, '$.' || name)) = 'OBJECT'
)
SELECT
    'constraints.' || name || '.' || field AS field,
    name || CASE field WHEN 'max_drop' THEN '_drop' WHEN 'max_rise' THEN '_rise' ELSE '' END AS metric,
    field <> 'min' AS is_upper,
    CAST(json_extract_string(limits, '$.' || field) AS DOUBLE) AS bound
FROM fields WHERE json_type(json_extract(limits, '$.' || field)) <> 'NULL';

-- Every allocation judged by images: who proposed it, how sparse it is, whether every interval clears its bound.
CREATE VIEW verdicts AS
SELECT
    e.key, e.allocation, e.rung, e.stage, e.question,
    CASE
        WHEN e.stage = 'baseline' THEN 'dense'
        ELSE split_part(e.question, '/', 2)
    END AS strategy,
    e.zeros,
    e.zeros / e.n_components AS sparsity_components,
    e.collapsed = '' AND NOT EXISTS (
        FROM bounds b LEFT JOIN measures m ON m.key = e.key AND m.metric = b.metric
        WHERE NOT coalesce(CASE WHEN b.is_upper THEN m.high <= b.bound ELSE m.low >= b.bound END, false)
    ) AS feasible
FROM evaluations e
WHERE e.failed = '' AND e.rung IN ('preview', 'score', 'validation');

-- Sensitivity: what removing so many weights of one group alone does; one row a level and metric.
CREATE VIEW curves AS
SELECT
    l."group", min(l.component) AS component, e.key, sum(a.zeros)::BIGINT AS zeros, m.metric,
    any_value(m.value) AS damage, any_value(m.low) AS low, any_value(m.high) AS high, any_value(m.n) AS n
FROM evaluations e
JOIN measures m USING (key)
JOIN allocations a ON a.allocation = e.allocation
JOIN layers l ON l.layer = a.layer
WHERE e.stage = 'sensitivity' AND e.failed = ''
GROUP BY l."group", e.key, m.metric;
