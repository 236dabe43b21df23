-- Methods compared: the sparsest allocation of each inside the budget, on the search's prompts and on held-out ones.
SELECT
    strategy,
    count(*) FILTER (rung = 'score') AS judged,
    round(100 * max(sparsity_components) FILTER (feasible AND rung = 'score'), 2) AS percent_search,
    round(100 * max(sparsity_components) FILTER (feasible AND rung = 'validation'), 2) AS percent_held_out
FROM verdicts
WHERE strategy <> 'dense'
GROUP BY strategy
ORDER BY percent_search DESC NULLS LAST, strategy;
