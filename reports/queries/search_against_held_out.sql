-- Is the winner's quality real? Every bounded measure of each strategy's sparsest feasible allocation, on the search's
-- prompts and on held-out prompts: what was chosen for looking good looks worse on new prompts.
WITH best AS (
    SELECT strategy, rung, arg_max(key, (zeros, key)) AS key, max(sparsity_components) AS sparsity
    FROM verdicts WHERE feasible AND strategy <> 'dense' AND rung IN ('score', 'validation') GROUP BY strategy, rung
)
SELECT
    best.strategy, best.rung, round(100 * best.sparsity, 2) AS percent_removed, b.metric,
    round(m.value, 4) AS value, round(m.ci_low, 4) AS ci_low, round(m.ci_high, 4) AS ci_high, m.n AS images,
    b.bound
FROM best
JOIN bounds b ON true
JOIN measures m ON m.key = best.key AND m.metric = b.metric
ORDER BY best.strategy, b.metric, best.rung;
