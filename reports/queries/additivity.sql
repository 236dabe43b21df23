-- Do single damages add up? The sum of the groups' own damages at the levels an allocation gives them (between two
-- measured levels: the straight line), beside what the whole allocation was measured to do; rho is Spearman's rank
-- correlation over all rows.
WITH probed AS (
    FROM curves WHERE metric = 'probe_error'
),
wanted AS (
    SELECT v.key, v.strategy, v.zeros AS total, l."group", sum(a.zeros) AS zeros
    FROM verdicts v
    JOIN allocations a USING (allocation)
    JOIN layers l ON l.layer = a.layer
    WHERE v.rung = 'score'
    GROUP BY ALL
),
predicted AS (
    SELECT key, any_value(strategy) AS strategy, any_value(total) AS zeros, sum(
        CASE
            WHEN zeros_above IS NULL THEN damage_below
            WHEN zeros_above = coalesce(zeros_below, 0) THEN damage_above
            ELSE coalesce(damage_below, 0) + (damage_above - coalesce(damage_below, 0))
                * (wanted_zeros - coalesce(zeros_below, 0)) / (zeros_above - coalesce(zeros_below, 0))
        END
    ) AS predicted
    FROM (
        SELECT w.key, w.strategy, w.total, w.zeros AS wanted_zeros,
            below.zeros AS zeros_below, below.damage AS damage_below,
            above.zeros AS zeros_above, above.damage AS damage_above
        FROM wanted w
        ASOF LEFT JOIN probed below ON w."group" = below."group" AND w.zeros >= below.zeros
        ASOF LEFT JOIN probed above ON w."group" = above."group" AND w.zeros <= above.zeros
    )
    GROUP BY key
),
both_sides AS (
    SELECT p.*, m.value AS closeness FROM predicted p JOIN measures m ON m.key = p.key AND m.metric = 'closeness'
)
SELECT
    strategy, zeros, round(predicted, 5) AS sum_of_single_damages, round(closeness, 4) AS measured_closeness,
    round((SELECT -corr(a, b) FROM (
        SELECT rank() OVER (ORDER BY predicted) AS a, rank() OVER (ORDER BY closeness) AS b FROM both_sides
    )), 3) AS rho
FROM both_sides
ORDER BY predicted, key;
