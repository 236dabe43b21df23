-- The Pareto front: what no other allocation on the score rung beats in both sparsity and the first bounded measure.
WITH judged AS (
    SELECT v.*, b.metric, m.value, m.ci_low, m.ci_high, CASE WHEN b.is_upper THEN m.value ELSE -m.value END AS loss
    FROM verdicts v
    JOIN (SELECT * FROM bounds LIMIT 1) b ON true
    JOIN measures m ON m.key = v.key AND m.metric = b.metric
    WHERE v.rung = 'score'
)
SELECT strategy, round(100 * sparsity_components, 2) AS percent_removed, metric, round(value, 5) AS value,
    round(ci_low, 5) AS ci_low, round(ci_high, 5) AS ci_high, feasible, allocation
FROM judged j
WHERE NOT EXISTS (
    SELECT 1 FROM judged k
    WHERE k.zeros >= j.zeros AND k.loss <= j.loss AND (k.zeros > j.zeros OR k.loss < j.loss)
)
ORDER BY j.zeros, allocation;
